// Products of dense matrices for calibration: sums over rows such as X^T X; see dense.cpp.
#pragma once

#include <cstdint>

namespace bitsmith::quantize {

constexpr int kDenseStrip = 32;  // columns that lie together
constexpr int kDenseRows = 512;  // rows that are summed at a time; a longer sum would be less exact

// Operands lie in strips: the terms of a sum one after the other, of kDenseStrip columns each. A term is a
// float32, or with `together` 2 a pair of bfloat16. What is missing in the last strip or pair is zero.
struct DenseKernels {
  // columns first .. first + kDenseStrip of x[rows, cols], or of x - less where that is given: terms are rows
  void (*pack_columns)(const float *x, const float *less, int64_t rows, int64_t cols, int64_t first, uint32_t *strip);
  // product[kDenseStrip, kDenseStrip] = left^T right over so many terms
  void (*multiply)(const uint32_t *left, const uint32_t *right, int64_t terms, float *product);
  int together;
};

}  // namespace bitsmith::quantize

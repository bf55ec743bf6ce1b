// Weights that learn their rounding, see trainable.cpp.
#pragma once

#include <cstdint>

namespace bitsmith::quantize {

// Rows that are rounded on a grid whose levels are consecutive integers. weight, offsets: [rows, cols]; scale, base:
// [rows, cols / block], base may be null; first: the lowest level; top: the number of levels less one
struct TrainableRows {
  const float *weight, *offsets, *scale, *base;
  int64_t cols, block;
  float first, top;
};

// Where gradients go: offsets [rows, cols]; scale and base [rows, cols / block], base may be null
struct TrainableGradients {
  float *offsets, *scale, *base;
};

struct TrainableKernels {
  int lanes;  // blocks must have a multiple of so many weights
  // The rounded values of rows first .. first + count, [rows, cols]
  void (*values)(const TrainableRows &, int64_t first, int64_t count, float *values);
  // What the gradient of the values, [rows, cols], is for offsets, scales and bases
  void (*gradients)(const TrainableRows &, int64_t first, int64_t count, const float *of_values,
                    const TrainableGradients &);
};

}  // namespace bitsmith::quantize

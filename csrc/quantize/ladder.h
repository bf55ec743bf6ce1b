// Scales chosen by trial: each block keeps the candidate with the least error; see ladder.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "types.h"

namespace bitsmith::quantize {

constexpr int kLadderRows = 64;  // rows that are worked on together

// Formats whose candidates are shares of a block's extent: `Affine` and `Codebook` of quant/formats.
// table: ascending levels; counts: whether they are consecutive integers
// asymmetric: whether blocks have a zero point; then `half` is the code of level 0
// top: steps from zero (asymmetric: from the smallest weight) to the largest; or the table's largest entry
// most: the largest scale; precision: that of the scales; block: weights that share a scale
// ratios: shares of the extent that are tried, in order
// turns: whether the scales of all shares but 1 are negative where the largest weight is positive
struct Ladder {
  std::vector<float> table, ratios;
  bool counts = false, asymmetric = false, turns = false;
  float top = 1, most = 0, half = 0;
  Float precision = Float::f32;
  int64_t block = 0;
};

// Where results go, each of which may be null. scale: [rows, blocks] in the stored precision; zero: [rows, blocks];
// values: float32 [rows, cols], decoded; codes: [rows, cols]
struct LadderOut {
  uint8_t *scale, *zero, *codes;
  float *values;
};

struct LadderRows {
  const float *data;
  int64_t rows, cols;
  const float *factors;     // of columns, [cols]: the rows are multiplied by them first; null: 1
  const float *importance;  // what a column's squared error counts, [cols]; null: the first candidate is taken
};

// Kernels of one instruction set, for rows first .. first + count, at most kLadderRows.
struct LadderKernels {
  void (*fit)(const Ladder &, const LadderRows &, int64_t first, int64_t count, const LadderOut &);
  // gram: [cols, cols]; each block keeps the candidate with the least e G e^T of its own part of it
  void (*clip)(const Ladder &, const LadderRows &, const float *gram, int64_t first, int64_t count, const LadderOut &);
  // The sum of e G e^T over the rows, where e is what the fit loses divided by the factors
  double (*loss)(const Ladder &, const LadderRows &, const float *gram, int64_t first, int64_t count);
};

}  // namespace bitsmith::quantize

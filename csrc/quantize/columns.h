// Sums over the rows of an input, and the order in which columns are rounded; see columns.cpp.
#pragma once

#include <cstdint>

namespace bitsmith::quantize {

constexpr int kPanel = 64;       // pivots that are found before the rest of the matrix is brought up to date
constexpr int kColumnRoom = 64;  // columns are padded to a multiple

struct ColumnKernels {
  // Adds to the sums of squares and of magnitudes, float64 [cols]; `largest` becomes the largest magnitude, NaN where
  // one is NaN. x: [rows, cols]
  void (*sums)(const float *x, int64_t rows, int64_t cols, double *square, double *magnitude, float *largest);
  // One panel of a Cholesky factorisation with the smallest pivot first. rest: [size, stride]; diagonal: [stride],
  // infinite in columns that are done or padding; panel: [kPanel, stride]; chosen: the columns, in order.
  // Returns the number of pivots, fewer than wanted where one is not above `least`.
  int (*pivots)(const float *rest, int64_t stride, int64_t size, int wanted, float least, float *diagonal, float *panel,
                int64_t *chosen);
  // rows first .. stop of rest -= panel^T panel
  void (*update)(float *rest, int64_t stride, int64_t first, int64_t stop, const float *panel, int count);
};

}  // namespace bitsmith::quantize

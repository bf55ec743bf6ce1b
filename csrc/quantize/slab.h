// Rows of a matrix that are rounded under a Hessian: GPTQ's pass and coordinate descent; see slab.cpp.
#pragma once

#include <cstdint>

namespace bitsmith::quantize {

constexpr int kSlabRows = 64;  // rows of a tile: a column of a tile lies together in memory
constexpr int kStep = 128;     // columns worked on together

// The grid of a slab by columns; `ColumnGrid` of column_grid.py.
// table: ascending levels; counts: whether they are consecutive integers, which are then found by arithmetic
// scale, offset: float32 [blocks, rows], offset null where there is none; block: columns that share a scale
struct ColumnGrid {
  const float *table;
  int levels;
  bool counts;
  const float *scale, *offset;
  int64_t block;
};

// A Hessian and its factor; `Factor` of hessian.py. order: null where columns are rounded from left to right
struct Hessian {
  const float *hessian, *feedback, *pivots, *added;
  const int64_t *order;
};

// Rows of a tile and their state, every array [cols, kSlabRows], and slope [cols or a part, kSlabRows].
// first: its first row; rows: how many there are, the others are zero; total: rows of the slab
struct SlabTile {
  float *weights, *levels, *error, *slope;
  int64_t first, rows, total, cols;
};

// What changes if scale and offset of a block move; `_Quadratic` of descent.py, float32 [rows] each.
struct Moments {
  float *first, *sum, *square, *mass;
};

// Kernels of one instruction set, for one tile. scratch: float32 [cols + kStep, kSlabRows]
struct SlabKernels {
  void (*load)(const SlabTile &, const float *rows, float *to);
  void (*feedback)(const SlabTile &, const Hessian &, const ColumnGrid &, float *scratch);
  // codes: uint8 [rows, cols] of the slab; the error of the nearest codes goes to `to`
  void (*nearest)(const SlabTile &, const ColumnGrid &, float *to, uint8_t *codes);
  void (*output_error)(const SlabTile &, const Hessian &, const float *error, double *to, float *scratch);
  void (*slope)(const SlabTile &, const Hessian &, int64_t start, int64_t stop);
  // start: the column where `slope` begins, also below
  void (*moments)(const SlabTile &, const Hessian &, int64_t start, int64_t left, int64_t block, const Moments &,
                  float *scratch);
  // scale, offset: the new ones of the block, [rows]; those in the grid are the old ones
  void (*move)(const SlabTile &, const Hessian &, const ColumnGrid &, int64_t start, int64_t stop, int64_t left,
               const float *scale, const float *offset, float *scratch);
  void (*recode)(const SlabTile &, const Hessian &, const ColumnGrid &, int64_t start, int64_t stop, float *scratch);
  void (*codes)(const SlabTile &, const ColumnGrid &, uint8_t *codes);
  // The squared error of the outputs, tr(e gram e^T), of weights that are multiplied by the columns' factors, take
  // their nearest values, and are divided again.
  double (*loss)(const SlabTile &, const ColumnGrid &, const float *factors, const float *gram, float *scratch);
};

}  // namespace bitsmith::quantize

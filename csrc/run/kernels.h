// What a forward pass computes, compiled once for every instruction set; `kernels()` gives those of the best one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "panels.h"

namespace bitsmith {

enum class FloatType { f32, f16, bf16 };

// Rows of panels: see panels.h. `halves` is where the float16 of the first panel begin, behind its words.
struct PanelRows {
  PanelType type;
  const uint8_t *data;
  int cols;
  int blocks() const { return cols / layout_of(type).weights; }
  size_t panel_bytes() const { return static_cast<size_t>(blocks()) * layout_of(type).bytes() * kPanelRows; }
};

// A float matrix [rows, cols], row by row.
struct FloatRows {
  FloatType type;
  const uint8_t *data;
  int cols;
};

// Rows of float32 for a product: row i at data + i * stride.
struct Rows {
  const float *data;
  size_t stride;
  int count;
};

// Rows of bfloat16, row i at data + i * stride.
struct BfloatRows {
  const uint16_t *data;
  size_t stride;
};

// Rows for products on tiles: bfloat16 [groups of 16 rows, cols / 32, 16, 32], and what that lost, or null.
constexpr int kTileRows = 16;
struct TiledRows {
  const uint16_t *upper, *lower;
  int rows, cols;  // cols: a multiple of 32
};

// How keys and values are kept: float32, float16, or blocks of 32 int8 with a float16 scale (ggml's q8_0).
enum class CacheType { f32, f16, q8_0 };

constexpr size_t cache_row_bytes(CacheType type, int width) {
  return type == CacheType::f32 ? 4 * width : type == CacheType::f16 ? 2 * width : width / 32 * 34;
}

// One head's keys or values: [positions, width].
struct HeadRows {
  const uint8_t *data;
  CacheType type;
};

// Attention of some queries of the heads that share keys and values.
struct Attention {
  const float *queries;  // [positions, group, width]
  int first, count;      // the positions among all queries of the call
  int start;             // index of query 0 among the keys
  int group;             // heads that share keys and values
  int width;             // of a head, padded with zeros to a multiple of 32
  int head_dim;
  int window;          // 0: all earlier keys
  bool alone;          // each position gives what it gives alone
  float softcap;       // c tanh(score / c) is taken of scores; 0 for none
  const float *sinks;  // [group], scores of a further key without a value; null for none
  HeadRows keys, values;
  float *out;  // [positions, out_stride]: [group, head_dim]
  size_t out_stride;
};

// Some tokens of one head of a gated delta net, see delta.h.
struct Recurrence {
  const float *q, *k;  // [count, key_stride]: [key_dim]
  const float *v;      // [count, value_stride]: [value_dim]
  size_t key_stride, value_stride;
  const float *kept, *rate;  // [count, gate_stride]: what a token keeps of the state, and how much it corrects
  size_t gate_stride;
  int count, key_dim, value_dim;
  float *state;  // [key_dim, value_dim], changed
  float *out;    // [count, out_stride]: [value_dim]
  size_t out_stride;
};

// How products with a single row read a matrix from memory. Results do not depend on it, but for the order in which the
// columns of a float matrix are added.
struct Reading {
  int near, far;  // bytes that are fetched ahead, into the first-level and into the second-level cache
  int rows;       // of a float matrix that are read together: 1, 2 or 4
};

struct Kernels {
  // the words of a panel, in the order of files, into the order of products; see panels.h
  void (*repack)(PanelType type, int blocks, uint8_t *panel);
  // x[cols] rounded to int8 in blocks of 32; cols a multiple of 32
  void (*round_row)(const float *x, int cols, RoundedBlock *out);
  void (*round_fine)(const float *x, int cols, FineBlock *out, FineSums *sums);
  // The first half of LLM.int8(), see mixed.h: blocks with one scale, of whatever of x[cols] is below `threshold`; the
  // last may be filled up with zeros. Returns the number of other columns, which come to `large`, room for `cols`.
  int (*round_mixed)(const float *x, int cols, float threshold, RoundedBlock *out, int *large);
  // blocks of int8 for products that take blocks of 15 bits; nothing is lost
  void (*to_fine)(const RoundedBlock *x, int cols, FineBlock *out, FineSums *sums);
  // y[16 count] = the product of x with `count` panels from `first`
  void (*panels_row)(const PanelRows &w, int first, int count, const FineRow &x, const Reading &reading, float *y);
  // the same for several rows: y[i * stride + 16 panel ...], each bit for bit what it is alone
  void (*panels_few)(const PanelRows &w, int first, int count, const FineRows &x, int rows, const Reading &reading,
                     float *y, size_t stride);
  // y[i * stride + 16 panel ...] for all rows of x, two panels at most at a time
  void (*panels_rows)(const PanelRows &w, int first, int count, const RoundedRows &x, int rows, float *y,
                      size_t stride);
  // the same from float32 inputs, weights decoded and nothing rounded
  void (*panels_exact)(const PanelRows &w, int first, int count, const Rows &x, float *y, size_t stride);
  void (*panels_row_exact)(const PanelRows &w, int first, int count, const float *x, const Reading &reading, float *y);
  // y[i * stride + 16 panel ...] += x times `many` ascending columns of w, nothing rounded: x has as many columns
  void (*panels_columns)(const PanelRows &w, int first, int count, const int *columns, int many, const Rows &x,
                         float *y, size_t stride);
  // y[i * stride + ..] = x times columns col .. col + cols of w, nothing rounded: x has as many columns as w has
  // `rows`; both of `cols` and `col` whole blocks, and multiples of 32
  void (*panels_back)(const PanelRows &w, int rows, int col, int cols, const Rows &x, float *y, size_t stride);
  // y[count] = rows first.. of w times x
  void (*floats_row)(const FloatRows &w, int first, int count, const float *x, const Reading &reading, float *y);
  // the same for several rows: y[i * stride + row], each bit for bit what it is alone
  void (*floats_few)(const FloatRows &w, int first, int count, const Rows &x, float *y, size_t stride);
  // y[i * stride + row], at most 32 rows of w
  void (*floats_rows)(const FloatRows &w, int first, int count, const Rows &x, float *y, size_t stride);
  // the same for inputs rounded to bfloat16, and weights too (those of bfloat16 are what they are); w.cols even.
  // Both null where the processor has no such products.
  void (*floats_rows_rounded)(const FloatRows &w, int first, int count, const BfloatRows &x, int rows, float *y,
                              size_t stride);
  void (*to_bfloat)(const float *x, int n, uint16_t *y);
  // On tiles, weights and inputs rounded to bfloat16, or to two of them. Null where the processor has none.
  // `to_tiles` puts x[n], and zeros behind it, to where row `row` stands; `lower` may be null.
  void (*to_tiles)(const float *x, int n, int row, int cols, uint16_t *upper, uint16_t *lower);
  void (*panels_tiles)(const PanelRows &w, int first, int count, const TiledRows &x, float *y, size_t stride);
  void (*floats_tiles)(const FloatRows &w, int first, int count, const TiledRows &x, float *y, size_t stride);
  // row `row` of a matrix, decoded
  void (*panels_decode)(const PanelRows &w, int row, float *y);
  void (*floats_decode)(const FloatRows &w, int row, float *y);

  void (*rms_norm)(const float *x, const float *weight, int n, float eps, float *y);
  void (*swiglu)(float *gate, const float *up, int n);  // gate = gate * sigmoid(gate) * up
  void (*geglu)(float *gate, const float *up, int n);   // gate = gelu(gate) * up, tanh form
  // gate = min(gate, 7) * sigmoid(1.702 gate) * (up + 1), up between -7 and 7
  void (*clamped_swiglu)(float *gate, const float *up, int n);
  void (*keep)(const float *x, int width, CacheType type, uint8_t *row);  // a row of keys or values
  void (*attend)(const Attention &task);
  void (*recur)(const Recurrence &task);
  // y = silu(sum over taps of inputs[tap] * taps[tap]), of `n` channels; taps: [count, n]
  void (*convolve)(const float *const *inputs, const float *taps, int count, int n, float *y);
  void (*gate_by)(const float *gate, float *x, int n);  // x = x * sigmoid(gate)
  // the sum of all words of memory, so that nothing is optimised away
  uint64_t (*read)(const uint8_t *from, size_t bytes, const Reading &reading);
};

const Kernels &kernels(Isa isa);

}  // namespace bitsmith

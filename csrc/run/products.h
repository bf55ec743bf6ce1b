// The products of this instruction set, by name; see `Kernels`.
#pragma once

#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace bitsmith::BITSMITH_ISA {

void repack(PanelType type, int blocks, uint8_t *panel);
void round_row(const float *x, int cols, RoundedBlock *out);
void round_fine(const float *x, int cols, FineBlock *out, FineSums *sums);
void panels_row(const PanelRows &w, int first, int count, const FineRow &x, const Reading &reading, float *y);
void panels_few(const PanelRows &w, int first, int count, const FineRows &x, int rows, const Reading &reading, float *y,
                size_t stride);
void panels_rows(const PanelRows &w, int first, int count, const RoundedRows &x, int rows, float *y, size_t stride);
void panels_exact(const PanelRows &w, int first, int count, const Rows &x, float *y, size_t stride);
void panels_row_exact(const PanelRows &w, int first, int count, const float *x, const Reading &reading, float *y);
void panels_columns(const PanelRows &w, int first, int count, const int *columns, int many, const Rows &x, float *y,
                    size_t stride);
int round_mixed(const float *x, int cols, float threshold, RoundedBlock *out, int *large);
void to_fine(const RoundedBlock *x, int cols, FineBlock *out, FineSums *sums);
void panels_back(const PanelRows &w, int rows, int col, int cols, const Rows &x, float *y, size_t stride);
void panels_decode(const PanelRows &w, int row, float *y);
void floats_row(const FloatRows &w, int first, int count, const float *x, const Reading &reading, float *y);
void floats_few(const FloatRows &w, int first, int count, const Rows &x, float *y, size_t stride);
void floats_rows(const FloatRows &w, int first, int count, const Rows &x, float *y, size_t stride);
void floats_rows_rounded(const FloatRows &w, int first, int count, const BfloatRows &x, int rows, float *y,
                         size_t stride);
void to_bfloat(const float *x, int n, uint16_t *y);
void to_tiles(const float *x, int n, int row, int cols, uint16_t *upper, uint16_t *lower);
void panels_tiles(const PanelRows &w, int first, int count, const TiledRows &x, float *y, size_t stride);
void floats_tiles(const FloatRows &w, int first, int count, const TiledRows &x, float *y, size_t stride);
void floats_decode(const FloatRows &w, int row, float *y);
void rms_norm(const float *x, const float *weight, int n, float eps, float *y);
void swiglu(float *gate, const float *up, int n);
void geglu(float *gate, const float *up, int n);
void clamped_swiglu(float *gate, const float *up, int n);
void keep(const float *x, int width, CacheType type, uint8_t *row);
void attend(const Attention &task);
void recur(const Recurrence &task);
void convolve(const float *const *inputs, const float *taps, int count, int n, float *y);
void gate_by(const float *gate, float *x, int n);
uint64_t read(const uint8_t *from, size_t bytes, const Reading &reading);

// y += X strip: for all rows of x and 32 columns in two strips of 16,
// y[i * stride + ..] += sum over k < depth of x[i][k] * strip[k][..]. A strip is float32 [depth, 16]; the second may be
// null: 16 columns.
void strip_product(const Rows &x, int depth, const float *strip, const float *second, float *y, size_t stride);

// A buffer of this thread, at least `size` long; one for each `Tag`.
template <class T, int Tag>
T *scratch(size_t size) {
  static thread_local std::vector<T> buffer;
  if (buffer.size() < size + 64 / sizeof(T)) buffer.resize(size + 64 / sizeof(T));
  const auto address = reinterpret_cast<uintptr_t>(buffer.data());
  return reinterpret_cast<T *>((address + 63) / 64 * 64);
}

}  // namespace bitsmith::BITSMITH_ISA

// Products of a few terms with tiles of kSlabRows rows, whose columns lie together in memory.
#pragma once

#include <algorithm>

#include "slab.h"
#include "vectors.h"

namespace bitsmith::quantize::BITSMITH_ISA {

using namespace bitsmith::BITSMITH_ISA;

constexpr int kWide = kLanes == 16 ? 4 : 2;  // vectors of a column whose sums stay in registers
constexpr int kColumns = 6;                  // columns whose sums stay in registers
constexpr int kDepth = 96;                   // terms whose columns stay in the first-level cache

// out[c] += sum over i of a[i, c] x[i] for C columns
template <int C>
BITSMITH_INLINE void tile(const float *a, int64_t stride, const float *x, int64_t terms, float *out) {
  Floats sums[C][kWide];
#pragma GCC unroll 6
  for (int j = 0; j < C; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) sums[j][v] = load<Floats>(out + j * kSlabRows + v * kLanes);
  for (int64_t i = 0; i < terms; ++i, a += stride, x += kSlabRows) {
    Floats column[kWide];
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) column[v] = load<Floats>(x + v * kLanes);
#pragma GCC unroll 6
    for (int j = 0; j < C; ++j) {
      const Floats factor = splat(a[j]);
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) sums[j][v] = fma(factor, column[v], sums[j][v]);
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < C; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) store(out + j * kSlabRows + v * kLanes, sums[j][v]);
}

// out[c] += sum over i of a[i, c] x[i]; a: [terms, columns], rows `stride` apart; x: [terms, kSlabRows]; out: [columns,
// kSlabRows]
inline void product(const float *a, int64_t stride, int64_t terms, int64_t columns, const float *x, float *out) {
  for (int64_t first = 0; first < terms; first += kDepth) {
    const int64_t deep = std::min<int64_t>(kDepth, terms - first);
    for (int part = 0; part < kSlabRows; part += kWide * kLanes) {
      for (int64_t c = 0; c < columns; c += kColumns) {
        const float *factors = a + first * stride + c, *from = x + first * kSlabRows + part;
        float *to = out + c * kSlabRows + part;
        switch (std::min<int64_t>(kColumns, columns - c)) {
          case 6: tile<6>(factors, stride, from, deep, to); break;
          case 5: tile<5>(factors, stride, from, deep, to); break;
          case 4: tile<4>(factors, stride, from, deep, to); break;
          case 3: tile<3>(factors, stride, from, deep, to); break;
          case 2: tile<2>(factors, stride, from, deep, to); break;
          default: tile<1>(factors, stride, from, deep, to);
        }
      }
    }
  }
}

// Sum over the rows of a tile of e G e^T, for errors e [cols, kSlabRows] and G [cols, cols], symmetric. steep: room for
// [kStep, kSlabRows]
inline double output_loss(const float *gram, int64_t cols, const float *error, float *steep) {
  // e G e^T = sum over j of e_j (G_jj e_j + 2 sum over i < j of G_ij e_i)
  Doubles total{};
  for (int64_t start = 0; start < cols; start += kStep) {
    const int64_t wide = std::min<int64_t>(kStep, cols - start);
    std::fill_n(steep, wide * kSlabRows, 0.0f);
    product(gram + start, cols, start, wide, error, steep);
    for (int64_t i = 0; i < wide * kSlabRows; ++i) steep[i] *= 2.0f;
    product(gram + start * cols + start, cols, wide, wide, error + start * kSlabRows, steep);
    for (int64_t i = 0; i < wide * kSlabRows; i += kLanes) {
      total +=
          convert<Doubles>(load<Floats>(error + start * kSlabRows + i)) * convert<Doubles>(load<Floats>(steep + i));
    }
  }
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
  return sum;
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

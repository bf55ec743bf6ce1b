// Sums over the rows of an input, and the order in which columns are rounded; compiled for each instruction set.
// stats.py and `_pivoted` of hessian.py are the definition.
#include "columns.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace bitsmith::quantize::BITSMITH_ISA {
namespace {

using namespace bitsmith::BITSMITH_ISA;

void sums(const float *x, int64_t rows, int64_t cols, double *square, double *magnitude, float *largest) {
  for (int64_t at = 0; at < cols; at += kLanes) {
    const int wide = static_cast<int>(std::min<int64_t>(kLanes, cols - at));
    Doubles squares{}, sizes{};
    Ints top{};
    for (int64_t row = 0; row < rows; ++row) {
      Floats v;
      if (wide == kLanes) {
        v = load<Floats>(x + row * cols + at);
      } else {
        float line[kLanes] = {};
        std::copy_n(x + row * cols + at, wide, line);
        v = load<Floats>(line);
      }
      const Ints bits = as<Ints>(v) & 0x7fffffff;
      top = bits > top ? bits : top;
      const Doubles size = convert<Doubles>(as<Floats>(bits));
      sizes += size;
      squares += size * size;
    }
    for (int i = 0; i < wide; ++i) {
      square[at + i] += squares[i];
      magnitude[at + i] += sizes[i];
      const Floats found = as<Floats>(top);
      if (!(found[i] <= largest[at + i])) largest[at + i] = found[i];
    }
  }
}

int pivots(const float *rest, int64_t stride, int64_t size, int wanted, float least, float *diagonal, float *panel,
           int64_t *chosen) {
  for (int count = 0; count < wanted; ++count) {
    const int64_t j = std::min_element(diagonal, diagonal + size) - diagonal;
    const float pivot = diagonal[j];
    if (!(pivot > least)) return count;
    float *own = panel + count * stride;
    const float root = std::sqrt(pivot);
    for (int64_t at = 0; at < stride; at += kLanes) {
      Floats column = load<Floats>(rest + j * stride + at);
      for (int i = 0; i < count; ++i) {
        column = fma(splat(-panel[i * stride + j]), load<Floats>(panel + i * stride + at), column);
      }
      column = column / root;
      store(own + at, column);
      store(diagonal + at, load<Floats>(diagonal + at) - column * column);
    }
    chosen[count] = j;
    diagonal[j] = std::numeric_limits<float>::infinity();
  }
  return wanted;
}

template <int R>
BITSMITH_INLINE void update_rows(float *rest, int64_t stride, int64_t row, const float *panel, int count) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;
  for (int64_t at = 0; at < stride; at += kWide * kLanes) {
    Floats own[R][kWide];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) own[r][v] = load<Floats>(rest + (row + r) * stride + at + v * kLanes);
    for (int i = 0; i < count; ++i) {
      const float *from = panel + i * stride;
      Floats columns[kWide];
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) columns[v] = load<Floats>(from + at + v * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Floats factor = splat(-from[row + r]);
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) own[r][v] = fma(factor, columns[v], own[r][v]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) store(rest + (row + r) * stride + at + v * kLanes, own[r][v]);
  }
}

void update(float *rest, int64_t stride, int64_t first, int64_t stop, const float *panel, int count) {
  int64_t row = first;
  for (; row + 6 <= stop; row += 6) update_rows<6>(rest, stride, row, panel, count);
  for (; row < stop; ++row) update_rows<1>(rest, stride, row, panel, count);
}

}  // namespace

extern const ColumnKernels kColumnKernels;
const ColumnKernels kColumnKernels{sums, pivots, update};

}  // namespace bitsmith::quantize::BITSMITH_ISA

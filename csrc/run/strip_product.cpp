// Float32 products with strips, the innermost loop of exact products, float matrices and attention over many queries.
#include "products.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

// The sums of a tile must stay in registers: two vectors of columns for each input row.
constexpr int kTile = kLanes == 16 ? 12 : 6;

template <int R, int P>
BITSMITH_INLINE void tile(const float *x, size_t x_stride, int depth, const float *const *strips, float *y,
                          size_t stride) {
  Floats sums[R][P];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) sums[i][p] = load<Floats>(y + i * stride + kLanes * p);
  // one pointer for three rows: the processor's addressing reaches all three from it
  const float *in[(R + 2) / 3];
  for (int i = 0; i < R; i += 3) in[i / 3] = x + i * x_stride;
  const float *first = strips[0], *second = strips[P - 1];
  for (int k = 0; k < depth; ++k) {
    const Floats w[2] = {load<Floats>(first), load<Floats>(second)};
    first += 16;
    second += 16;
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const Floats input = splat(in[i / 3][static_cast<size_t>(i % 3) * x_stride]);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) sums[i][p] = fma(input, w[p], sums[i][p]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < (R + 2) / 3; ++i) ++in[i];
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) store(y + i * stride + kLanes * p, sums[i][p]);
}

template <int P>
void tiles(const Rows &x, int depth, const float *const *strips, float *y, size_t stride) {
  int row = 0;
  for (; row + kTile <= x.count; row += kTile)
    tile<kTile, P>(x.data + row * x.stride, x.stride, depth, strips, y + row * stride, stride);
  for (; row + 4 <= x.count; row += 4)
    tile<4, P>(x.data + row * x.stride, x.stride, depth, strips, y + row * stride, stride);
  for (; row < x.count; ++row) tile<1, P>(x.data + row * x.stride, x.stride, depth, strips, y + row * stride, stride);
}

}  // namespace

void strip_product(const Rows &x, int depth, const float *strip, const float *second, float *y, size_t stride) {
  if constexpr (kLanes == 16) {
    const float *strips[2] = {strip, second};
    if (second)
      tiles<2>(x, depth, strips, y, stride);
    else
      tiles<1>(x, depth, strips, y, stride);
  } else {
    for (int lane = 0; lane < (second ? 32 : 16); lane += 2 * kLanes) {
      const float *from = lane < 16 ? strip + lane : second + lane - 16;
      const float *strips[2] = {from, from + kLanes};
      tiles<2>(x, depth, strips, y + lane, stride);
    }
  }
}

}  // namespace bitsmith::BITSMITH_ISA

// Products of many rows in bfloat16, twice as fast as in float32 where the processor has them.
#include <algorithm>

#include "products.h"

#if defined(__AVX512BF16__)

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kDepth = 512;  // columns of a strip: 32 KB for two of them
constexpr int kTile = 12;    // input rows whose sums stay in registers

// Turns 16 rows at most into bfloat16 [cols / 2, 16, 2]. Missing rows are zero.
void to_strip(const FloatRows &w, int first, int rows, int col, int depth, uint32_t *strip) {
  const uint8_t *p = w.data + (static_cast<size_t>(first) * w.cols + col) * 2;
  const size_t bytes = static_cast<size_t>(w.cols) * 2;
  if (rows < 16) std::fill(strip, strip + depth / 2 * 16, 0);
  for (int r = 0; r < rows; ++r, p += bytes) {
    if (w.type == FloatType::bf16) {
      for (int k = 0; k < depth / 2; ++k) std::memcpy(strip + 16 * k + r, p + 4 * k, 4);
      continue;
    }
    int k = 0;
    for (; k + 16 <= depth; k += 16) {
      uint32_t pairs[8];
      store(pairs, _mm512_cvtneps_pbh(load_half(p + 2 * k)));
      for (int i = 0; i < 8; ++i) strip[16 * (k / 2 + i) + r] = pairs[i];
    }
    if (k == depth) continue;
    uint16_t rest[16] = {};
    uint32_t pairs[8];
    std::memcpy(rest, p + 2 * k, (depth - k) * 2);
    store(pairs, _mm512_cvtneps_pbh(load_half(rest)));
    for (int i = 0; k + 2 * i < depth; ++i) strip[16 * (k / 2 + i) + r] = pairs[i];
  }
}

template <int R>
BITSMITH_INLINE void tile(const uint16_t *x, size_t x_stride, int pairs, const uint32_t *first, const uint32_t *second,
                          float *y) {
  Floats sums[R][2];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < 2; ++p) sums[i][p] = load<Floats>(y + 32 * i + 16 * p);
  const uint16_t *in[(R + 2) / 3];
  for (int i = 0; i < R; i += 3) in[i / 3] = x + i * x_stride;
  for (int k = 0; k < pairs; ++k) {
    const __m512bh w[2] = {as<__m512bh>(load<__m512i>(first + 16 * k)), as<__m512bh>(load<__m512i>(second + 16 * k))};
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      int32_t pair;
      std::memcpy(&pair, in[i / 3] + static_cast<size_t>(i % 3) * x_stride, 4);
      const __m512bh input = as<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) sums[i][p] = _mm512_dpbf16_ps(sums[i][p], w[p], input);
    }
#pragma GCC unroll 4
    for (int i = 0; i < (R + 2) / 3; ++i) in[i] += 2;
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < 2; ++p) store(y + 32 * i + 16 * p, sums[i][p]);
}

}  // namespace

void to_bfloat(const float *x, int n, uint16_t *y) {
  int i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, _mm512_cvtneps_pbh(load<Floats>(x + i)));
  float rest[16] = {};
  uint16_t rounded[16];
  std::memcpy(rest, x + i, (n - i) * sizeof(float));
  store(rounded, _mm512_cvtneps_pbh(load<Floats>(rest)));
  std::memcpy(y + i, rounded, (n - i) * sizeof(uint16_t));
}

void floats_rows_rounded(const FloatRows &w, int first, int count, const BfloatRows &x, int rows, float *y,
                         size_t stride) {
  uint32_t *strips = scratch<uint32_t, 11>(kDepth * 16);
  float *sums = scratch<float, 10>(static_cast<size_t>(rows) * 32);
  std::fill(sums, sums + static_cast<size_t>(rows) * 32, 0.0f);
  for (int col = 0; col < w.cols; col += kDepth) {
    const int depth = std::min(kDepth, w.cols - col);
    uint32_t *second = strips + kDepth / 2 * 16;
    to_strip(w, first, std::min(16, count), col, depth, strips);
    to_strip(w, first + 16, std::max(0, count - 16), col, depth, second);
    int row = 0;
    const auto at = [&](int i) { return x.data + i * x.stride + col; };
    for (; row + kTile <= rows; row += kTile)
      tile<kTile>(at(row), x.stride, depth / 2, strips, second, sums + 32 * row);
    for (; row + 4 <= rows; row += 4) tile<4>(at(row), x.stride, depth / 2, strips, second, sums + 32 * row);
    for (; row < rows; ++row) tile<1>(at(row), x.stride, depth / 2, strips, second, sums + 32 * row);
  }
  for (int i = 0; i < rows; ++i) std::copy(sums + 32 * i, sums + 32 * i + count, y + i * stride);
}

}  // namespace bitsmith::BITSMITH_ISA

#endif

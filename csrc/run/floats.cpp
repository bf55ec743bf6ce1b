// Matrices of float32, float16 and bfloat16, row by row as files hold them.
#include <algorithm>

#include "products.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

template <FloatType type>
constexpr int kSize = type == FloatType::f32 ? 4 : 2;

template <FloatType type>
BITSMITH_INLINE Floats load_as(const uint8_t *p) {
  if constexpr (type == FloatType::f32) return load<Floats>(p);
  if constexpr (type == FloatType::f16) return load_half(p);
  return load_bfloat(p);
}

template <FloatType type>
BITSMITH_INLINE float one(const uint8_t *p) {
  alignas(64) uint8_t padded[4 * kLanes] = {};
  std::memcpy(padded, p, kSize<type>);
  return load_as<type>(padded)[0];
}

template <class Visit>
BITSMITH_INLINE void with_type(FloatType type, const Visit &visit) {
  switch (type) {
    case FloatType::f32: return visit(std::integral_constant<FloatType, FloatType::f32>{});
    case FloatType::f16: return visit(std::integral_constant<FloatType, FloatType::f16>{});
    default: return visit(std::integral_constant<FloatType, FloatType::bf16>{});
  }
}

// R rows times one input.
template <FloatType type, int R, bool fetched>
BITSMITH_INLINE void dots(const uint8_t *p, size_t bytes, int cols, const float *x, const Reading &reading, float *y) {
  Floats sums[R][2] = {};
  int k = 0;
  for (; k + 2 * kLanes <= cols; k += 2 * kLanes) {
    const Floats a = load<Floats>(x + k), b = load<Floats>(x + k + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const uint8_t *at = p + r * bytes + static_cast<size_t>(k) * kSize<type>;
      if constexpr (fetched) {
        for (int line = 0; line < 2 * kLanes * kSize<type>; line += 64) {
          __builtin_prefetch(at + reading.near + line, 0, 3);
          __builtin_prefetch(at + reading.far + line, 0, 2);
        }
      }
      sums[r][0] = fma(load_as<type>(at), a, sums[r][0]);
      sums[r][1] = fma(load_as<type>(at + kLanes * kSize<type>), b, sums[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) y[r] = sum(sums[r][0] + sums[r][1]);
  for (; k < cols; ++k)
    for (int r = 0; r < R; ++r) y[r] += one<type>(p + r * bytes + static_cast<size_t>(k) * kSize<type>) * x[k];
}

// W rows times R inputs; each sum is taken in the order of `dots`.
template <FloatType type, int W, int R>
BITSMITH_INLINE void few_dots(const uint8_t *p, size_t bytes, int cols, const float *x, size_t x_stride, float *y,
                              size_t stride) {
  Floats sums[R][W][2] = {};
  int k = 0;
  for (; k + 2 * kLanes <= cols; k += 2 * kLanes) {
    Floats w[W][2];
#pragma GCC unroll 8
    for (int r = 0; r < W; ++r) {
      const uint8_t *at = p + r * bytes + static_cast<size_t>(k) * kSize<type>;
      w[r][0] = load_as<type>(at), w[r][1] = load_as<type>(at + kLanes * kSize<type>);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const Floats a = load<Floats>(x + i * x_stride + k), b = load<Floats>(x + i * x_stride + k + kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < W; ++r) {
        sums[i][r][0] = fma(w[r][0], a, sums[i][r][0]);
        sums[i][r][1] = fma(w[r][1], b, sums[i][r][1]);
      }
    }
  }
  for (int i = 0; i < R; ++i)
    for (int r = 0; r < W; ++r) y[i * stride + r] = sum(sums[i][r][0] + sums[i][r][1]);
  for (; k < cols; ++k)
    for (int r = 0; r < W; ++r) {
      const float value = one<type>(p + r * bytes + static_cast<size_t>(k) * kSize<type>);
      for (int i = 0; i < R; ++i) y[i * stride + r] += value * x[i * x_stride + k];
    }
}

// W rows times all inputs.
template <FloatType type, int W>
void few_inputs(const uint8_t *p, size_t bytes, int cols, const Rows &x, float *y, size_t stride) {
  constexpr int R = kLanes == 16 ? 4 : 2;  // whose sums stay in registers
  int i = 0;
  for (; i + R <= x.count; i += R)
    few_dots<type, W, R>(p, bytes, cols, x.data + i * x.stride, x.stride, y + i * stride, stride);
  for (; i < x.count; ++i)
    few_dots<type, W, 1>(p, bytes, cols, x.data + i * x.stride, x.stride, y + i * stride, stride);
}

// Turns columns from `col` on, of 16 rows at most, into a strip. Missing rows are zero.
template <FloatType type>
void to_strip(const FloatRows &w, int first, int rows, int col, int depth, float *strip) {
  const size_t bytes = static_cast<size_t>(w.cols) * kSize<type>;
  if (rows < 16) std::fill(strip, strip + static_cast<size_t>(depth) * 16, 0.0f);
  const uint8_t *p = w.data + first * bytes + static_cast<size_t>(col) * kSize<type>;
  int k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    float values[16][kLanes];
    for (int r = 0; r < rows; ++r)
      store(values[r], load_as<type>(p + r * bytes + static_cast<size_t>(k) * kSize<type>));
    for (int i = 0; i < kLanes; ++i)
      for (int r = 0; r < rows; ++r) strip[(k + i) * 16 + r] = values[r][i];
  }
  for (; k < depth; ++k)
    for (int r = 0; r < rows; ++r) strip[k * 16 + r] = one<type>(p + r * bytes + static_cast<size_t>(k) * kSize<type>);
}

}  // namespace

void floats_row(const FloatRows &w, int first, int count, const float *x, const Reading &reading, float *y) {
  with_type(w.type, [&](auto type) {
    constexpr FloatType kType = decltype(type)::value;
    const size_t bytes = static_cast<size_t>(w.cols) * kSize<kType>;
    const uint8_t *p = w.data + first * bytes;
    const auto rows = [&](auto together, auto fetched) {
      constexpr int R = decltype(together)::value;
      constexpr bool kFetched = decltype(fetched)::value;
      int row = 0;
      for (; row + R <= count; row += R) dots<kType, R, kFetched>(p + row * bytes, bytes, w.cols, x, reading, y + row);
      for (; row < count; ++row) dots<kType, 1, kFetched>(p + row * bytes, bytes, w.cols, x, reading, y + row);
    };
    const auto choose = [&](auto fetched) {
      if (reading.rows == 1) return rows(std::integral_constant<int, 1>{}, fetched);
      if (reading.rows == 2) return rows(std::integral_constant<int, 2>{}, fetched);
      return rows(std::integral_constant<int, 4>{}, fetched);
    };
    if (reading.far > 0)
      choose(std::true_type{});
    else
      choose(std::false_type{});
  });
}

void floats_few(const FloatRows &w, int first, int count, const Rows &x, float *y, size_t stride) {
  with_type(w.type, [&](auto type) {
    constexpr FloatType kType = decltype(type)::value;
    const size_t bytes = static_cast<size_t>(w.cols) * kSize<kType>;
    const uint8_t *p = w.data + first * bytes;
    int row = 0;
    for (; row + 2 <= count; row += 2) few_inputs<kType, 2>(p + row * bytes, bytes, w.cols, x, y + row, stride);
    if (row < count) few_inputs<kType, 1>(p + row * bytes, bytes, w.cols, x, y + row, stride);
  });
}

void floats_rows(const FloatRows &w, int first, int count, const Rows &x, float *y, size_t stride) {
  constexpr int kDepth = 192;
  float *strips = scratch<float, 4>(2 * kDepth * 16);
  // strips have 32 columns; the output may have fewer
  float *sums = scratch<float, 10>(static_cast<size_t>(x.count) * 32);
  std::fill(sums, sums + static_cast<size_t>(x.count) * 32, 0.0f);
  for (int col = 0; col < w.cols; col += kDepth) {
    const int depth = std::min(kDepth, w.cols - col);
    with_type(w.type, [&](auto type) {
      to_strip<decltype(type)::value>(w, first, std::min(16, count), col, depth, strips);
      if (count > 16) to_strip<decltype(type)::value>(w, first + 16, count - 16, col, depth, strips + kDepth * 16);
    });
    strip_product({x.data + col, x.stride, x.count}, depth, strips, count > 16 ? strips + kDepth * 16 : nullptr, sums,
                  32);
  }
  for (int i = 0; i < x.count; ++i) std::copy(sums + i * 32, sums + i * 32 + count, y + i * stride);
}

void floats_decode(const FloatRows &w, int row, float *y) {
  with_type(w.type, [&](auto type) {
    constexpr FloatType kType = decltype(type)::value;
    const uint8_t *p = w.data + static_cast<size_t>(row) * w.cols * kSize<kType>;
    int k = 0;
    for (; k + kLanes <= w.cols; k += kLanes) store(y + k, load_as<kType>(p + static_cast<size_t>(k) * kSize<kType>));
    for (; k < w.cols; ++k) y[k] = one<kType>(p + static_cast<size_t>(k) * kSize<kType>);
  });
}

}  // namespace bitsmith::BITSMITH_ISA

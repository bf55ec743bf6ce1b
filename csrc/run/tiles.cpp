// Many rows times matrices on tiles (Intel AMX: chapter 20 of the optimization reference manual). Weights are decoded
// to bfloat16 once for all rows. Sums are float32 and stay in tiles.
//
// What bfloat16 loses can be multiplied too: x w ~ upper(x) upper(w) + upper(x) lower(w) + lower(x) upper(w), where
// `lower` is the bfloat16 of what `upper` lost. That keeps 16 bits of each.
#include <algorithm>
#include <cmath>

#include "dot.h"
#include "products.h"
#include "types.h"

#if defined(__AMX_BF16__)

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kSide = kTileRows;  // rows of a tile; 32 columns of bfloat16, or 16 of float32
constexpr int kDepth = 256;       // columns decoded at a time: 16 KB for two panels
constexpr int kRows = 512;        // input rows worked on at a time

// 16 rows of a matrix, decoded: bfloat16 [depth / 2, 16, 2]. `lower` only where it is wanted.
struct Strip {
  uint32_t *upper, *lower;
  Strip from(int pair) const { return {upper + kSide * pair, lower ? lower + kSide * pair : nullptr}; }
};

// All tiles with 16 rows of 64 bytes, for this thread.
class Tiles {
 public:
  Tiles() {
    alignas(64) uint8_t shape[64] = {1};
    for (int i = 0; i < 8; ++i) shape[16 + 2 * i] = 64, shape[48 + i] = kSide;
    asm volatile("" : : "r"(shape) : "memory");  // GCC 12 believes that only 8 bytes of it are read
    _tile_loadconfig(shape);
  }
  ~Tiles() { _tile_release(); }
};

// Two numbers as bfloat16, side by side: to nearest.
BITSMITH_INLINE Words paired(Floats even, Floats odd) {
  const Words half = Words{} + 0x8000u;  // NaN must not carry over into the sign: see `settled`
  return (as<Words>(even) + half) >> 16 | ((as<Words>(odd) + half) & 0xffff0000u);
}

BITSMITH_INLINE void put(Floats even, Floats odd, const Strip &out, int pair) {
  const Words upper = paired(even, odd);
  store(out.upper + kSide * pair, upper);
  if (!out.lower) return;
  store(out.lower + kSide * pair, paired(even - as<Floats>(upper << 16), odd - as<Floats>(upper & 0xffff0000u)));
}

// The same, with NaN whose bits can be rounded.
BITSMITH_INLINE Floats settled(Floats v) { return v == v ? v : splat(NAN); }

// 256 plus a byte of each word.
BITSMITH_INLINE Floats raised(Words v, int byte) {
  const Words moved = byte == 0 ? v << 15 : byte == 1 ? v << 7 : byte == 2 ? v >> 1 : v >> 9;
  return as<Floats>((moved & 0x007f8000u) | 0x43800000u);
}

// Blocks of one panel.
template <class T>
void decode_panel(const PanelRows &w, int panel, int col, int cols, const Strip &out) {
  constexpr BlockLayout layout = layout_of(T::kType);
  constexpr int kRuns = layout.weights / 32, kSubs = 32 / T::kSub;
  const uint8_t *base = w.data + panel * w.panel_bytes();
  const uint8_t *halves = base + static_cast<size_t>(w.blocks()) * layout.words * 64;
  for (int at = 0; at < cols / layout.weights; ++at) {
    const size_t block = col / layout.weights + at;
    const uint8_t *p = base + block * layout.words * 64;
    const Floats d = settled(T::d(p, halves + block * 2 * kPanelRows));
    Floats dmin{};
    if constexpr (T::kAffine) dmin = settled(T::dmin(p));
#pragma GCC unroll kUnrolled
    for (int run = 0; run < kRuns; ++run) {
      const Strip to = out.from(16 * (at * kRuns + run));
      const float unit = 1.0f / (1 << T::lift(run));
      const float zero = T::kZero < 0 ? 0 : 1 << T::kZero;
      Floats scale{}, low{};
#pragma GCC unroll kUnrolled
      for (int j = 0; j < 8; ++j) {
        if (j % (8 / kSubs) == 0) {
          const int sub = run * kSubs + j / 4;
          scale = scale_in<T>(p, d, sub);
          low = scale * splat(-zero);
          if constexpr (T::kAffine) {
            if constexpr (kScaled<T>)
              low -= dmin * convert<Floats>(min_of<T>(p, sub));
            else
              low -= dmin;
          }
          scale *= splat(unit);
          low = fma(scale, splat(-256.0f), low);
        }
        const Words codes = T::lifted(p, run, j);
        put(fma(raised(codes, 0), scale, low), fma(raised(codes, 1), scale, low), to, 2 * j);
        put(fma(raised(codes, 2), scale, low), fma(raised(codes, 3), scale, low), to, 2 * j + 1);
      }
    }
  }
}

// 32 columns of a row as bfloat16, and what that lost; columns behind the last are zero.
struct Rounded {
  Words upper, lower;
};

BITSMITH_INLINE Rounded rounded(Floats first, Floats second) {
  const Words upper = as<Words>(_mm512_cvtne2ps_pbh(second, first));
  uint16_t kept[32];
  store(kept, upper);
  first -= load_bfloat(kept), second -= load_bfloat(kept + 16);
  return {upper, as<Words>(_mm512_cvtne2ps_pbh(second, first))};
}

BITSMITH_INLINE Rounded columns(FloatType type, const uint8_t *p, int left) {
  uint8_t padded[64] = {};
  if (left < 32) std::memcpy(padded, p, std::max(left, 0) * 2), p = padded;
  if (type == FloatType::bf16) return {load<Words>(p), Words{}};
  return rounded(load_half(p), load_half(p + 32));
}

void turn(Words (&rows)[16], uint32_t *out) {
  Floats lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = as<Floats>(rows[i]);
  transpose(lanes);
  for (int i = 0; i < 16; ++i) store(out + kSide * i, lanes[i]);
}

// Some rows of a float matrix. Missing rows are zero.
void decode_floats(const FloatRows &w, int first, int rows, int col, int cols, const Strip &out) {
  for (int k = 0; k < cols; k += 32) {
    Words upper[16] = {}, lower[16] = {};
    for (int r = 0; r < rows; ++r) {
      const uint8_t *p = w.data + (static_cast<size_t>(first + r) * w.cols + col + k) * 2;
      const Rounded row = columns(w.type, p, w.cols - col - k);
      upper[r] = row.upper, lower[r] = row.lower;
    }
    const Strip to = out.from(k / 2);
    turn(upper, to.upper);
    if (to.lower) turn(lower, to.lower);
  }
}

// Where sums of 32 columns lie.
struct Sums {
  float *data;
  size_t stride;
};

// to [16 R, 32] = products of 16 R rows with two strips, and what `from` holds, if anything. x: the tiles of the first
// 16 rows; those of the next lie `group` further.
template <int R>
BITSMITH_INLINE void multiply(const uint16_t *x, const uint16_t *rest, size_t group, int depth, const Strip &first,
                              const Strip &second, const Sums &from, const Sums &to) {
  constexpr int kTileSize = kSide * 32;
  if (from.data) {
    const size_t bytes = from.stride * sizeof(float);
    _tile_loadd(0, from.data, bytes);
    _tile_loadd(1, from.data + 16, bytes);
    if constexpr (R == 2) {
      _tile_loadd(2, from.data + 16 * from.stride, bytes);
      _tile_loadd(3, from.data + 16 * from.stride + 16, bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const auto products = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (R == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (int k = 0; k < depth / 32; ++k) {
    const auto rows = [&](const uint16_t *in) {
      _tile_loadd(4, in + k * kTileSize, 64);
      if constexpr (R == 2) _tile_loadd(5, in + group + k * kTileSize, 64);
    };
    const auto weights = [&](const uint32_t *a, const uint32_t *b) {
      _tile_loadd(6, a + k * kTileSize / 2, 64);
      _tile_loadd(7, b + k * kTileSize / 2, 64);
    };
    rows(x);
    if (first.lower) {
      weights(first.lower, second.lower);
      products();
    }
    weights(first.upper, second.upper);
    products();
    if (rest) {
      rows(rest);
      products();
    }
  }
  const size_t bytes = to.stride * sizeof(float);
  _tile_stored(0, to.data, bytes);
  _tile_stored(1, to.data + 16, bytes);
  if constexpr (R == 2) {
    _tile_stored(2, to.data + 16 * to.stride, bytes);
    _tile_stored(3, to.data + 16 * to.stride + 16, bytes);
  }
}

// Products of rows with `count` groups of 16 rows of a matrix, `columns` rows in all. decode(group, col, cols, strip)
// gives one group. exact: the weights are bfloat16 already.
//
// Some inputs, of kRows rows and kDepth columns, stay in the second-level cache for all groups, and a pair of strips in
// the first. So do sums, but the last, which go to y, where it has room for all 32 rows and columns.
template <class Decode>
void rows_of(const TiledRows &x, bool exact, int count, int columns, float *y, size_t stride, const Decode &decode) {
  const Tiles tiles;
  constexpr size_t kHalf = static_cast<size_t>(kDepth) * kSide / 2;
  const bool lower = x.lower && !exact;
  uint32_t *strips = scratch<uint32_t, 11>(4 * kHalf);
  const Strip first{strips, lower ? strips + 2 * kHalf : nullptr};
  const Strip second{strips + kHalf, lower ? strips + 3 * kHalf : nullptr};
  const int pairs = (count + 1) / 2;
  float *sums = scratch<float, 10>(static_cast<size_t>(pairs) * kRows * 32);
  const size_t group = static_cast<size_t>(x.cols) * kSide;
  for (int top = 0; top < x.rows; top += kRows) {
    const int end = std::min(x.rows, top + kRows);
    for (int col = 0; col < x.cols; col += kDepth) {
      const int depth = std::min(kDepth, x.cols - col);
      for (int pair = 0; pair < pairs; ++pair) {
        decode(2 * pair, col, depth, first);
        if (2 * pair + 1 < count) decode(2 * pair + 1, col, depth, second);
        const bool last = col + depth == x.cols, wide = 32 * pair + 32 <= columns;
        for (int row = top; row < end; row += 32) {
          const size_t at = row / kSide * group + static_cast<size_t>(col) * kSide;
          const uint16_t *rest = x.lower ? x.lower + at : nullptr;
          const Sums kept{sums + (static_cast<size_t>(pair) * kRows + row - top) * 32, 32};
          const Sums from{col > 0 ? kept.data : nullptr, 32};
          const Sums to = last && wide && row + 32 <= end ? Sums{y + row * stride + 32 * pair, stride} : kept;
          if (end - row > kSide)
            multiply<2>(x.upper + at, rest, group, depth, first, second, from, to);
          else
            multiply<1>(x.upper + at, rest, group, depth, first, second, from, to);
          if (!last || to.data != kept.data) continue;
          const int width = std::min(32, columns - 32 * pair);
          for (int i = row; i < std::min(end, row + 32); ++i)
            std::copy_n(kept.data + (i - row) * 32, width, y + i * stride + 32 * pair);
        }
      }
    }
  }
}

}  // namespace

void to_tiles(const float *x, int n, int row, int cols, uint16_t *upper, uint16_t *lower) {
  const size_t group = static_cast<size_t>(cols) * kSide * (row / kSide) + 32 * (row % kSide);
  for (int k = 0; k < cols; k += 32) {
    float padded[32] = {};
    if (k + 32 > n) std::copy(x + k, x + n, padded);
    const float *from = k + 32 > n ? padded : x + k;
    const Rounded to = rounded(load<Floats>(from), load<Floats>(from + 16));
    store(upper + group + static_cast<size_t>(k) * kSide, to.upper);
    if (lower) store(lower + group + static_cast<size_t>(k) * kSide, to.lower);
  }
}

void panels_tiles(const PanelRows &w, int first, int count, const TiledRows &x, float *y, size_t stride) {
  with_type(w.type, [&](auto type) {
    rows_of(x, false, count, kPanelRows * count, y, stride, [&](int group, int col, int cols, const Strip &out) {
      decode_panel<decltype(type)>(w, first + group, col, cols, out);
    });
  });
}

void floats_tiles(const FloatRows &w, int first, int count, const TiledRows &x, float *y, size_t stride) {
  const int groups = (count + kSide - 1) / kSide;
  rows_of(x, w.type == FloatType::bf16, groups, count, y, stride, [&](int group, int col, int cols, const Strip &out) {
    decode_floats(w, first + kSide * group, std::min(kSide, count - kSide * group), col, cols, out);
  });
}

}  // namespace bitsmith::BITSMITH_ISA

#endif

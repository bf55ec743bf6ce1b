// Many rows times panels. Arithmetic bounds it, so panels are unpacked once for all rows, into the first-level cache.
#include <algorithm>

#include "dot.h"
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kDepth = 512;  // columns unpacked at a time: 16 KB of codes for two panels
constexpr int kTile = 4;     // input rows whose sums stay in registers
constexpr int kGroups = kPanelRows / kLanes;

// Whether codes are multiplied by their integer scales: 3 * 15 still fits a byte. All columns of a block then share one
// scale.
template <class T>
constexpr bool kMultiplied = T::kType == PanelType::q2_k;

// Some columns of a panel, unpacked: codes as `codes` gives them, and what they mean, value = scale * code - low.
struct Strip {
  uint8_t *codes;  // [cols / 4, 16, 4]
  float *scales;   // [cols / sub, 16]; of codes that are multiplied already: [cols / 32, 16]
  float *lows;     // [cols / sub, 16]; of affine types
};

template <class T>
void unpack(const PanelRows &w, int panel, int col, int cols, const Strip &out) {
  constexpr BlockLayout layout = layout_of(T::kType);
  constexpr int kRuns = layout.weights / 32, kSubs = 32 / T::kSub;
  const uint8_t *base = w.data + panel * w.panel_bytes();
  const uint8_t *halves = base + static_cast<size_t>(w.blocks()) * layout.words * 64;
  for (int at = 0; at < cols / layout.weights; ++at) {
    const int block = col / layout.weights + at;
    for (int g = 0; g < kGroups; ++g) {
      const uint8_t *p = base + static_cast<size_t>(block) * layout.words * 64 + 4 * kLanes * g;
      const Floats d = T::d(p, halves + static_cast<size_t>(block) * 2 * kPanelRows + 2 * kLanes * g);
      Floats dmin{};
      if constexpr (T::kAffine) dmin = T::dmin(p);
#pragma GCC unroll kUnrolled
      for (int run = 0; run < kRuns; ++run) {
        const int r = at * kRuns + run;
#pragma GCC unroll kUnrolled
        for (int j = 0; j < 8; ++j) {
          Words unpacked = codes<T>(p, run, j);
          if constexpr (kMultiplied<T>) unpacked *= as<Words>(scale_of<T>(p, 2 * run + j / 4));  // no byte overflows
          store(out.codes + (8 * r + j) * 64 + 4 * kLanes * g, unpacked);
        }
#pragma GCC unroll kUnrolled
        for (int sub = 0; sub < kSubs; ++sub) {
          const size_t s = static_cast<size_t>(r * kSubs + sub) * kPanelRows + kLanes * g;
          if constexpr (kMultiplied<T>) {
            if (sub == 0) store(out.scales + static_cast<size_t>(r) * kPanelRows + kLanes * g, d);
            store(out.lows + s, dmin * convert<Floats>(min_of<T>(p, run * kSubs + sub)));
          } else if constexpr (!kScaled<T>) {
            store(out.scales + s, d);
            if constexpr (T::kAffine) store(out.lows + s, dmin);
          } else {
            store(out.scales + s, d * convert<Floats>(scale_of<T>(p, run * kSubs + sub)));
            if constexpr (T::kAffine) store(out.lows + s, dmin * convert<Floats>(min_of<T>(p, run * kSubs + sub)));
          }
        }
      }
    }
  }
}

// What a tile knows of its type at compile time. sub, low_sub: columns that share a scale, or a low. corrected: sums
// begin with what the number added to the codes must be paid back with.
template <int sub, int low_sub, int bits, bool affine, bool wide, bool corrected>
struct Kind {
  static constexpr int kSub = sub, kLowSub = low_sub, kBits = bits;
  static constexpr bool kAffine = affine, kWide = wide, kCorrected = corrected;
};

template <class T>
using KindOf = Kind<kMultiplied<T> ? 32 : T::kSub, T::kSub, kMultiplied<T> ? 6 : T::kBits, T::kAffine, T::kWide,
                    (T::kZero >= 0 && !(T::kWide && !kWideAsTheyAre))>;

// The weight in column k of an unpacked strip, row r of 16.
template <class T>
BITSMITH_INLINE float value(const Strip &strip, int k, int r) {
  const float scaled = strip.scales[k / KindOf<T>::kSub * 16 + r] * level<T>(strip.codes[k / 4 * 64 + 4 * r + k % 4]);
  return T::kAffine ? scaled - strip.lows[k / T::kSub * 16 + r] : scaled;
}

// Products of P vectors of rows with R input rows, over `runs` runs of 32 columns. They are added to y, or replace it.
// x: the first run of the first input row; the next row is `blocks` further. strip: the second panel lies kDepth
// columns behind the first.
template <class K, int P, int R>
BITSMITH_INLINE void tile(const Strip &strip, const RoundedBlock *x, size_t blocks, int runs, int zero, bool add,
                          float *y, size_t stride) {
  constexpr int kSubs = 32 / K::kSub;
  Floats sums[R][P];
#pragma GCC unroll kUnrolled
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) sums[i][p] = add ? load<Floats>(y + i * stride + kLanes * p) : Floats{};
  for (int run = 0; run < runs; ++run) {
    Words codes[P][8];
#pragma GCC unroll kUnrolled
    for (int p = 0; p < P; ++p)
#pragma GCC unroll kUnrolled
      for (int j = 0; j < 8; ++j) codes[p][j] = load<Words>(strip.codes + p * kDepth * 16 + (8 * run + j) * 64);
    const auto at = [&](const float *values, int p, int index) {
      return load<Floats>(values + p * kDepth + index * 16);
    };
#pragma GCC unroll kUnrolled
    for (int i = 0; i < R; ++i) {
      const RoundedBlock &in = x[i * blocks + run];
      const Floats scale = splat(in.scale);
      Sums<K::kBits, K::kWide> dots[P][kSubs];
#pragma GCC unroll kUnrolled
      for (int s = 0; s < kSubs; ++s) {
        Ints begin{};
        if constexpr (K::kCorrected) begin = splat(kSubs == 1 ? in.negated : in.negated_16[s]) << zero;
#pragma GCC unroll kUnrolled
        for (int p = 0; p < P; ++p) dots[p][s].start(begin);
      }
#pragma GCC unroll kUnrolled
      for (int j = 0; j < 8; ++j) {
        int32_t four;
        std::memcpy(&four, in.codes + 4 * j, 4);
#pragma GCC unroll kUnrolled
        for (int p = 0; p < P; ++p) dots[p][j / (8 / kSubs)].add(codes[p][j], four, j, (j + 1) % (8 / kSubs) == 0);
      }
#pragma GCC unroll kUnrolled
      for (int p = 0; p < P; ++p) {
        if constexpr (kSubs == 1) {
          sums[i][p] = fma(convert<Floats>(dots[p][0].total()), at(strip.scales, p, run) * scale, sums[i][p]);
        } else {
          const Floats first = convert<Floats>(dots[p][0].total()) * at(strip.scales, p, 2 * run);
          sums[i][p] =
              fma(fma(convert<Floats>(dots[p][1].total()), at(strip.scales, p, 2 * run + 1), first), scale, sums[i][p]);
        }
        if constexpr (K::kAffine && K::kLowSub == 32)
          sums[i][p] = fma(at(strip.lows, p, run), splat(-in.sum), sums[i][p]);
        if constexpr (K::kAffine && K::kLowSub == 16) {
          sums[i][p] = fma(at(strip.lows, p, 2 * run), splat(-in.halves[0]), sums[i][p]);
          sums[i][p] = fma(at(strip.lows, p, 2 * run + 1), splat(-in.halves[1]), sums[i][p]);
        }
      }
    }
  }
#pragma GCC unroll kUnrolled
  for (int i = 0; i < R; ++i)
    for (int p = 0; p < P; ++p) store(y + i * stride + kLanes * p, sums[i][p]);
}

template <class K, int P>
void tiles(const Strip &strip, const RoundedRows &x, int rows, int first_run, int runs, int zero, float *y,
           size_t stride) {
  const size_t blocks = x.cols / 32;
  for (int row = 0; row < rows; row += kTile) {
    const RoundedBlock *in = x.row(row) + first_run;
    float *out = y + row * stride;
    const bool add = first_run > 0;
    switch (std::min(kTile, rows - row)) {
      case 4: tile<K, P, 4>(strip, in, blocks, runs, zero, add, out, stride); break;
      case 3: tile<K, P, 3>(strip, in, blocks, runs, zero, add, out, stride); break;
      case 2: tile<K, P, 2>(strip, in, blocks, runs, zero, add, out, stride); break;
      default: tile<K, P, 1>(strip, in, blocks, runs, zero, add, out, stride);
    }
  }
}

// Room for two panels; the second lies kDepth columns behind the first.
Strip strip_buffers() {
  return {scratch<uint8_t, 0>(2 * kDepth * 16), scratch<float, 1>(2 * kDepth), scratch<float, 2>(2 * kDepth)};
}

Strip part(const Strip &strip, int panel, int lane) {
  return {strip.codes + panel * kDepth * 16 + 4 * lane, strip.scales + panel * kDepth + lane,
          strip.lows + panel * kDepth + lane};
}

template <class T>
void rows_of(const PanelRows &w, int first, int count, const RoundedRows &x, int rows, float *y, size_t stride) {
  using K = KindOf<T>;
  const int zero = std::max(T::kZero, 0);
  const Strip strip = strip_buffers();
  for (int pair = 0; pair < count; pair += 2) {
    const int panels = std::min(2, count - pair);
    for (int col = 0; col < w.cols; col += kDepth) {
      const int cols = std::min(kDepth, w.cols - col);
      for (int p = 0; p < panels; ++p) unpack<T>(w, first + pair + p, col, cols, part(strip, p, 0));
      float *out = y + kPanelRows * pair;
      if (kLanes == 16 && panels == 2) {
        tiles<K, 2>(strip, x, rows, col / 32, cols / 32, zero, out, stride);
      } else {
        for (int lane = 0; lane < kPanelRows * panels; lane += kLanes)
          tiles<K, 1>(part(strip, lane / 16, lane % 16), x, rows, col / 32, cols / 32, zero, out + lane, stride);
      }
    }
  }
}

}  // namespace

void panels_rows(const PanelRows &w, int first, int count, const RoundedRows &x, int rows, float *y, size_t stride) {
  with_type(w.type, [&](auto type) { rows_of<decltype(type)>(w, first, count, x, rows, y, stride); });
}

// Unrounded inputs: weights decoded to float32 strips.
void panels_exact(const PanelRows &w, int first, int count, const Rows &x, float *y, size_t stride) {
  constexpr int kExactDepth = 256;  // whole blocks of every type
  float *values = scratch<float, 3>(2 * kExactDepth * 16);
  const Strip strip = strip_buffers();
  for (int pair = 0; pair < count; pair += 2) {
    const int panels = std::min(2, count - pair);
    for (int col = 0; col < w.cols; col += kExactDepth) {
      const int cols = std::min(kExactDepth, w.cols - col);
      for (int p = 0; p < panels; ++p) {
        with_type(w.type, [&](auto type) {
          using T = decltype(type);
          unpack<T>(w, first + pair + p, col, cols, strip);
          for (int k = 0; k < cols; ++k)
            for (int r = 0; r < 16; ++r) values[(p * kExactDepth + k) * 16 + r] = value<T>(strip, k, r);
        });
      }
      float *out = y + kPanelRows * pair;
      if (col == 0)
        for (int i = 0; i < x.count; ++i) std::fill(out + i * stride, out + i * stride + 16 * panels, 0.0f);
      strip_product({x.data + col, x.stride, x.count}, cols, values, panels == 2 ? values + kExactDepth * 16 : nullptr,
                    out, stride);
    }
  }
}

void panels_decode(const PanelRows &w, int row, float *y) {
  const Strip strip = strip_buffers();
  for (int col = 0; col < w.cols; col += kDepth) {
    const int cols = std::min(kDepth, w.cols - col), r = row % kPanelRows;
    with_type(w.type, [&](auto type) {
      using T = decltype(type);
      unpack<T>(w, row / kPanelRows, col, cols, strip);
      for (int k = 0; k < cols; ++k) y[col + k] = value<T>(strip, k, r);
    });
  }
}

}  // namespace bitsmith::BITSMITH_ISA

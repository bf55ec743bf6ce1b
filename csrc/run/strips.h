// Panels unpacked for many rows: codes as `codes` gives them, their scales and lows.
#pragma once

#include <algorithm>

#include "dot.h"
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {

constexpr int kDepth = 512;  // columns unpacked at a time: 16 KB of codes for two panels
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
            store(out.scales + s, scale_in<T>(p, d, run * kSubs + sub));
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

// Room for two panels; the second lies kDepth columns behind the first.
inline Strip strip_buffers() {
  return {scratch<uint8_t, 0>(2 * kDepth * 16), scratch<float, 1>(2 * kDepth), scratch<float, 2>(2 * kDepth)};
}

inline Strip part(const Strip &strip, int panel, int lane) {
  return {strip.codes + panel * kDepth * 16 + 4 * lane, strip.scales + panel * kDepth + lane,
          strip.lows + panel * kDepth + lane};
}

}  // namespace bitsmith::BITSMITH_ISA

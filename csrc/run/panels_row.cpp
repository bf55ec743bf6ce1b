// One rounded row times panels. The memory's bandwidth bounds it, so words are unpacked in registers.
#include <algorithm>

#include "dot.h"
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kGroups = kPanelRows / kLanes;  // vectors that hold a value of each row of a panel

BITSMITH_INLINE int32_t four(const int8_t *codes) {
  int32_t x;
  std::memcpy(&x, codes, 4);
  return x;
}

// Whether codes are multiplied where they lie in their words, times 2^lift. That takes all eight bits of a byte.
constexpr bool kLifts = kWideAsTheyAre;

template <class T>
constexpr int lift(int run) {
  return kLifts ? T::lift(run) : 0;
}

// Whether runs of a type are multiplied with this lift.
template <class T>
constexpr bool has_lift(int lifted) {
  for (int run = 0; run < 8; ++run)
    if (lift<T>(run) == lifted) return true;
  return false;
}

// What a sum of products begins with, to pay back what was added to the codes.
template <class T>
BITSMITH_INLINE Ints start(int32_t negated, int lift) {
  if constexpr (T::kZero < 0 || (T::kWide && !kWideAsTheyAre))
    return Ints{};
  else
    return splat(negated * (1 << (T::kZero + lift)));
}

// Products of a run, of the columns from 4 * first up to 4 * last.
template <class T>
BITSMITH_INLINE Ints dot(Ints acc, const uint8_t *p, int run, const FineBlock &x, int first, int last) {
  Sums<T::kBits, T::kWide> upper, lower;
  lower.start(acc);
#pragma GCC unroll kUnrolled
  for (int j = first; j < last; ++j) {
    const Words w = kLifts ? T::lifted(p, run, j) : codes<T>(p, run, j);
    upper.add(w, four(x.upper + 4 * j), j, j + 1 == last);
    lower.add(w, four(x.lower + 4 * j), j, j + 1 == last);
  }
  return lower.total() + (upper.total() << 7);
}

// Byte b of each word, times 2^24, with its sign.
BITSMITH_INLINE Floats byte_of(Words v, int b) {
#if defined(__AVX512BW__)
  const __m512i places = _mm512_add_epi8(_mm512_set4_epi32(12, 8, 4, 0), _mm512_set1_epi32(b));
  v = as<Words>(_mm512_maskz_shuffle_epi8(0x8888888888888888u, as<__m512i>(v), _mm512_slli_epi32(places, 24)));
#else
  v = v << (24 - 8 * b) & 0xff000000u;
#endif
  return convert<Floats>(as<Ints>(v));
}

// The mins of a block times the sums of the inputs they belong to.
template <class T>
BITSMITH_INLINE Floats lows(const uint8_t *p, const FineSums &sums) {
  constexpr int kFirst = T::kSub == 16 ? 0 : 16, kWords = 256 / T::kSub / 4;
  Ints upper{}, lower{};
#pragma GCC unroll kUnrolled
  for (int i = 0; i < kWords; ++i) {
    const Words mins = T::mins(p, i);
    upper = dot4<false>(upper, mins, four(sums.upper + kFirst + 4 * i));
    lower = dot4<false>(lower, mins, four(sums.lower + kFirst + 4 * i));
  }
  return convert<Floats>(lower + (upper << 7)) * splat(sums.scale);
}

// Where words that are needed later lie.
struct Ahead {
  const uint8_t *near, *far;
};

// Fetch a piece of a block that is needed later, one of `pieces`. Processors do not foresee the order in which words
// are read; and all of a block at once would fill the buffers of the first-level cache.
template <int words>
BITSMITH_INLINE void fetch(const Ahead &ahead, int piece, int pieces) {
#pragma GCC unroll kUnrolled
  for (int word = piece * words / pieces; word < (piece + 1) * words / pieces; ++word) {
    __builtin_prefetch(ahead.near + 64 * word, 0, 3);
    __builtin_prefetch(ahead.far + 64 * word, 0, 2);
  }
}

// What one block of kLanes rows, with integer scales, adds to each row's sum. group: of its rows in their panel
template <class T>
BITSMITH_INLINE Floats scaled_block(const uint8_t *p, const uint8_t *half, const FineBlock *x, const FineSums &sums,
                                    const Ahead &ahead, int group) {
  Floats totals[8] = {};  // of the runs of each lift
#pragma GCC unroll kUnrolled
  for (int run = 0; run < 8; ++run) {
    fetch<layout_of(T::kType).words>(ahead, 8 * group + run, 8 * kGroups);
    const FineBlock &in = x[run];
    const int lifted = lift<T>(run);
    Floats &total = totals[lifted];
    if constexpr (T::kSub == 32) {
      const Floats sum = convert<Floats>(dot<T>(start<T>(in.negated, lifted), p, run, in, 0, 8));
      total = fma(sum, byte_of(T::scales(p, run / 4), run & 3) * splat(in.scale), total);
    } else {
      const Words scales = T::scales(p, run / 2);
      const Floats a = convert<Floats>(dot<T>(start<T>(in.negated_16[0], lifted), p, run, in, 0, 4)),
                   b = convert<Floats>(dot<T>(start<T>(in.negated_16[1], lifted), p, run, in, 4, 8));
      const Floats sum = fma(a, byte_of(scales, 2 * (run & 1)), b * byte_of(scales, 2 * (run & 1) + 1));
      total = fma(sum, splat(in.scale), total);
    }
  }
#pragma GCC unroll kUnrolled
  for (int lifted = 1; lifted < 8; ++lifted)
    if (has_lift<T>(lifted)) totals[0] = fma(totals[lifted], splat(1.0f / (1 << lifted)), totals[0]);
  Floats total = totals[0] * (T::d(p, half) * 0x1p-24f);
  if constexpr (T::kAffine) total -= T::dmin(p) * lows<T>(p, sums);
  return total;
}

// The same without integer scales.
template <class T>
BITSMITH_INLINE Floats plain_block(const uint8_t *p, const uint8_t *half, const FineBlock *x, const Ahead &ahead,
                                   int group) {
  constexpr int kRuns = layout_of(T::kType).weights / 32;
  Floats total{};
  float low = 0;
#pragma GCC unroll kUnrolled
  for (int run = 0; run < kRuns; ++run) {
    fetch<layout_of(T::kType).words>(ahead, kRuns * group + run, kRuns * kGroups);
    const FineBlock &in = x[run];
    total = fma(convert<Floats>(dot<T>(start<T>(in.negated, 0), p, run, in, 0, 8)), splat(in.scale), total);
    low += in.sum;
  }
  total *= T::d(p, half);
  if constexpr (T::kAffine) total -= T::dmin(p) * splat(low);
  return total;
}

template <class T>
void rows_of(const PanelRows &w, int first, int count, const FineRow &x, const Reading &reading, float *y) {
  constexpr BlockLayout layout = layout_of(T::kType);
  const int blocks = w.blocks();
  const size_t bytes = w.panel_bytes();
  const size_t begin = std::min<size_t>(reading.far, count * bytes);
  for (size_t at = 0; at < begin; at += 64) __builtin_prefetch(w.data + first * bytes + at, 0, 2);
  for (int panel = 0; panel < count; ++panel) {
    const uint8_t *p = w.data + (first + panel) * bytes;
    const uint8_t *half = p + static_cast<size_t>(blocks) * layout.words * 64;
    Floats sums[kGroups] = {};
    for (int at = 0; at < blocks; ++at) {
      const Ahead ahead{p + reading.near, p + reading.far};
#pragma GCC unroll kUnrolled
      for (int g = 0; g < kGroups; ++g) {
        const uint8_t *words = p + 4 * kLanes * g, *halves = half + 2 * kLanes * g;
        const FineBlock *in = x.blocks + at * (layout.weights / 32);
        if constexpr (kScaled<T>)
          sums[g] += scaled_block<T>(words, halves, in, x.sums[at], ahead, g);
        else
          sums[g] += plain_block<T>(words, halves, in, ahead, g);
      }
      p += layout.words * 64;
      if (layout.half != Half::none) half += 2 * kPanelRows;
    }
    for (int g = 0; g < kGroups; ++g) store(y + kPanelRows * panel + kLanes * g, sums[g]);
  }
}

}  // namespace

void panels_row(const PanelRows &w, int first, int count, const FineRow &x, const Reading &reading, float *y) {
  with_type(w.type, [&](auto type) { rows_of<decltype(type)>(w, first, count, x, reading, y); });
}

}  // namespace bitsmith::BITSMITH_ISA

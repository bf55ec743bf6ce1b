// What one row and a few rows times panels share: inputs of 15 bits, and codes that are multiplied where they lie.
#pragma once

#include "dot.h"
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {

constexpr int kVectors = kPanelRows / kLanes;  // that hold a value of each row of a panel

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

// The scale of a sub-block, as it is added up: integers times 2^24, floats times 2^-116. What these factors are paid
// back with: floats first with the inputs' scale, and the rest with d, so that no product leaves the range of a float.
template <class T>
BITSMITH_INLINE Floats sub_scale(const uint8_t *p, int sub) {
  if constexpr (T::kFloats)
    return T::float_scale(p, sub);
  else
    return byte_of(T::scales(p, sub / 4), sub & 3);
}

template <class T>
BITSMITH_INLINE Floats input_scale(const FineBlock &in) {
  return splat(T::kFloats ? in.scale * 0x1p58f : in.scale);
}

template <class T>
BITSMITH_INLINE Floats rest_of_scale(const uint8_t *p, const uint8_t *half) {
  return kScaled<T> ? T::d(p, half) * (T::kFloats ? 0x1p58f : 0x1p-24f) : T::d(p, half);
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

}  // namespace bitsmith::BITSMITH_ISA

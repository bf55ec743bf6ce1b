// Vectors of as many floats as the instruction set's registers hold, and what is done to every lane of them.
//
// To be included by kernels only: everything lives in a namespace of the instruction set, so that the linker does not
// merge what was compiled with different flags. Results are the same in every lane and on every instruction set: each
// operation is exactly rounded, none is fused, nothing is reordered.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bitsmith::quantize::BITSMITH_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

#define LANES_INLINE inline __attribute__((always_inline))
#define LANES_LAMBDA __attribute__((always_inline))

constexpr float kF16Max = 65504.0f;

LANES_INLINE Floats splat(float value) { return value - Floats{}; }  // x - 0 keeps the sign of -0

LANES_INLINE Floats load(const float *from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

LANES_INLINE void store(float *to, Floats lanes) { std::memcpy(to, &lanes, sizeof lanes); }

LANES_INLINE Floats bits_to_floats(Ints bits) { return reinterpret_cast<Floats>(bits); }
LANES_INLINE Ints floats_to_bits(Floats lanes) { return reinterpret_cast<Ints>(lanes); }

// The smaller and the larger; a where one is NaN, or where they are equal.
LANES_INLINE Floats at_most(Floats a, Floats limit) {
#if defined(__AVX512F__)
  return _mm512_min_ps(limit, a);
#elif defined(__AVX2__)
  return _mm256_min_ps(limit, a);
#elif defined(__SSE2__)
  return _mm_min_ps(limit, a);
#else
  return a > limit ? limit : a;
#endif
}

LANES_INLINE Floats at_least(Floats a, Floats limit) {
#if defined(__AVX512F__)
  return _mm512_max_ps(limit, a);
#elif defined(__AVX2__)
  return _mm256_max_ps(limit, a);
#elif defined(__SSE2__)
  return _mm_max_ps(limit, a);
#else
  return a < limit ? limit : a;
#endif
}

LANES_INLINE Floats clip(Floats a, float low, float high) { return at_most(at_least(a, splat(low)), splat(high)); }

LANES_INLINE Floats absolute(Floats a) { return bits_to_floats(floats_to_bits(a) & 0x7fffffff); }

// Nearest integer, half to even; keeps the sign of zero.
LANES_INLINE Floats rint(Floats a) {
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Floats size = absolute(a);
  const Floats whole = (size + 0x1p23f) - 0x1p23f;
  return bits_to_floats(floats_to_bits(size < 0x1p23f ? whole : size) | (floats_to_bits(a) & INT32_MIN));
#endif
}

// 1 / a, and 0 where a is 0 (or so small that 1 / a overflows); `inverse` of fit.py.
LANES_INLINE Floats inverse(Floats a) {
  const Ints alive = absolute(a) > 1e-37f;
  return alive ? 1.0f / (alive ? a : splat(1.0f)) : Floats{};
}

// Round to float16 and back, saturating; `f16` of fit.py.
LANES_INLINE Floats f16(Floats a) {
  const Ints bits = floats_to_bits(clip(a, -kF16Max, kF16Max));
  const Ints size = bits & 0x7fffffff, sign = bits & INT32_MIN;
  const Ints normal = (size + 0xfff + ((size >> 13) & 1)) & ~0x1fff;
  const Ints small = floats_to_bits((bits_to_floats(size) + 0.5f) - 0.5f);  // float16 steps of 2^-24 below 2^-14
  return bits_to_floats((size < (113 << 23) ? small : normal) | sign);
}

// The float16 of a value that is one.
inline uint16_t f16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size >= 113u << 23) return static_cast<uint16_t>(sign | ((size >> 13) - (112u << 10)));
  float small;
  std::memcpy(&small, &size, 4);
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(small * 0x1p24f));
}

// Sum of leaf(0) .. leaf(N - 1) by halving, N a power of two: the order of `tree_sum` in fit.py, depth first.
template <int N, int I = 0, int Step = 1, class Leaf>
LANES_INLINE auto tree(const Leaf &leaf) {
  if constexpr (Step == N) {
    return leaf(I);
  } else {
    return tree<N, I, Step * 2>(leaf) + tree<N, I + Step, Step * 2>(leaf);
  }
}

// Several sums taken together.
template <int K>
struct Sums {
  Floats sum[K];
  LANES_INLINE Sums operator+(const Sums &other) const {
    Sums both;
    for (int i = 0; i < K; ++i) both.sum[i] = sum[i] + other.sum[i];
    return both;
  }
};

template <int Step, int... I>
LANES_INLINE void swap_corners(Floats &upper, Floats &lower, std::integer_sequence<int, I...>) {
  const Floats a = upper, b = lower;
  upper = __builtin_shufflevector(a, b, ((I & Step) ? kLanes + I - Step : I)...);
  lower = __builtin_shufflevector(a, b, ((I & Step) ? kLanes + I : I + Step)...);
}

template <int Step = kLanes / 2>
LANES_INLINE void transpose(Floats (&rows)[kLanes]) {
  if constexpr (Step > 0) {
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & Step)) swap_corners<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>());
    }
    transpose<Step / 2>(rows);
  }
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

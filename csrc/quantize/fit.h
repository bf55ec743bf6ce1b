// What all searches share: numbers and sums of bitsmith/quant/scale_search.py, to the bit.
#pragma once

#include "vectors.h"

namespace bitsmith::quantize::BITSMITH_ISA {

using namespace bitsmith::BITSMITH_ISA;  // the names of vectors.h

constexpr float kF16Max = 65504.0f;

// 1 / a, and 0 where a is 0 (or so small that 1 / a overflows); `inverse` of scale_search.py.
BITSMITH_INLINE Floats inverse(Floats a) {
  const Ints alive = absolute(a) > 1e-37f;
  return alive ? 1.0f / (alive ? a : splat(1.0f)) : Floats{};
}

// Rounded to float16 and back. What is too large becomes the largest float16; `f16` of scale_search.py.
BITSMITH_INLINE Floats f16(Floats a) {
  const Ints bits = as<Ints>(clip(a, -kF16Max, kF16Max));
  const Ints size = bits & 0x7fffffff, sign = bits & INT32_MIN;
  const Ints normal = (size + 0xfff + ((size >> 13) & 1)) & ~0x1fff;
  const Ints small = as<Ints>((as<Floats>(size) + 0.5f) - 0.5f);  // float16 steps of 2^-24 below 2^-14
  return as<Floats>((size < (113 << 23) ? small : normal) | sign);
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

// Sum of leaf(0) .. leaf(N - 1) by halving, N a power of two: the order of `tree_sum` in scale_search.py, depth first.
template <int N, int I = 0, int Step = 1, class Leaf>
BITSMITH_INLINE auto tree(const Leaf &leaf) {
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
  BITSMITH_INLINE Sums operator+(const Sums &other) const {
    Sums both;
    for (int i = 0; i < K; ++i) both.sum[i] = sum[i] + other.sum[i];
    return both;
  }
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

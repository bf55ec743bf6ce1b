// Weights as checkpoints store them, to float32.
#pragma once

#include "lanes.h"
#include "types.h"

namespace bitsmith::quantize::BITSMITH_ISA {

LANES_INLINE Floats widen(const uint8_t *from, Float type) {
  if (type == Float::f32) {
    Floats lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
  }
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Ints bits = __builtin_convertvector(halves, Ints);
  if (type == Float::bf16) return bits_to_floats(bits << 16);
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(reinterpret_cast<__m256i>(halves));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(halves));
#else
  // infinite and NaN become numbers from 65536 up, beyond the largest finite one
  return bits_to_floats((bits & 0x7fff) << 13 | (bits & 0x8000) << 16) * 0x1p112f;
#endif
}

// `count` weights, a multiple of 16, and into `largest` the bits of the largest magnitude of each lane.
LANES_INLINE void read_weights(float *to, const uint8_t *from, Float type, int count, Ints &largest) {
  const int size = type == Float::f32 ? 4 : 2;
  for (int i = 0; i < count; i += kLanes) {
    const Floats lanes = widen(from + i * size, type);
    const Ints bits = floats_to_bits(lanes) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
    store(to + i, lanes);
  }
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

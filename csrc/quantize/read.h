// Weights as checkpoints store them, to float32.
#pragma once

#include "fit.h"
#include "types.h"

namespace bitsmith::quantize::BITSMITH_ISA {

BITSMITH_INLINE Floats load_weights(const uint8_t *from, Float type) {
  if (type == Float::f32) return load<Floats>(from);
  return type == Float::bf16 ? load_bfloat(from) : load_half(from);
}

// Reads `count` weights, a multiple of 16. `largest` becomes the bits of the largest magnitude of each lane.
BITSMITH_INLINE void read_weights(float *to, const uint8_t *from, Float type, int count, Ints &largest) {
  const int size = type == Float::f32 ? 4 : 2;
  for (int i = 0; i < count; i += kLanes) {
    const Floats lanes = load_weights(from + i * size, type);
    const Ints bits = as<Ints>(lanes) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
    store(to + i, lanes);
  }
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

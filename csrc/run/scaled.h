// 32 numbers in the steps that int8 codes count, as products and caches take them.
#pragma once

#include "simd.h"

namespace bitsmith::BITSMITH_ISA {

// The largest takes 127.
struct Scaled {
  F values[32 / L];
  float step;
};

// The step of NaN and infinities is NaN, so that they do not vanish in the rounding; their codes are bounded.
BITSMITH_INLINE Scaled scaled(const float *x) {
  Scaled out;
  F most{}, total{};
  for (int i = 0; i < 32 / L; ++i) {
    out.values[i] = load<F>(x + L * i);
    most = max(most, magnitude(out.values[i]));
    total += out.values[i];
  }
  const float absmax = largest(most), check = sum(total);
  const float inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
  out.step = absmax / 127.0f + (check - check);
  for (F &v : out.values) v = min(max(v * inverse, broadcast(-127.0f)), broadcast(127.0f));
  return out;
}

BITSMITH_INLINE void store_codes(int8_t *to, I codes) { store(to, __builtin_convertvector(codes, S8)); }

}  // namespace bitsmith::BITSMITH_ISA

// Blocks of 32 numbers, scaled so that rounding gives int8 codes. Products and caches take them.
#pragma once

#include "vectors.h"

namespace bitsmith::BITSMITH_ISA {

// values: between -127 and 127; the number of largest magnitude is at one end. step: what a code of 1 means
struct Scaled {
  Floats values[32 / kLanes];
  float step;
};

// If a number is NaN or infinite, the step is NaN, so that rounding does not hide it. `max` takes NaN to -127.
BITSMITH_INLINE Scaled scaled(const float *x) {
  Scaled out;
  Floats most{}, total{};
  for (int i = 0; i < 32 / kLanes; ++i) {
    out.values[i] = load<Floats>(x + kLanes * i);
    most = max(most, absolute(out.values[i]));
    total += out.values[i];
  }
  const float absmax = largest(most), check = sum(total);
  const float inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
  out.step = absmax / 127.0f + (check - check);
  for (Floats &v : out.values) v = min(max(v * inverse, splat(-127.0f)), splat(127.0f));
  return out;
}

BITSMITH_INLINE void store_codes(int8_t *to, Ints codes) { store(to, convert<SignedBytes>(codes)); }

}  // namespace bitsmith::BITSMITH_ISA

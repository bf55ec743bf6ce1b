// exp of a vector, to about one unit in the last place.
#pragma once

#include "simd.h"

namespace bitsmith::BITSMITH_ISA {

// exp(x); below -87 it is 0, above 88 infinite. NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r (Cephes' expf).
BITSMITH_INLINE F exponential(F x) {
  const F bounded = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
  const I n = nearest(bounded * 1.44269504f);
  const F whole = to_float(n);
  F r = fma(whole, broadcast(-0.693359375f), bounded);
  r = fma(whole, broadcast(2.12194440e-4f), r);
  F y = broadcast(1.9875691500e-4f);
  y = fma(y, r, broadcast(1.3981999507e-3f));
  y = fma(y, r, broadcast(8.3334519073e-3f));
  y = fma(y, r, broadcast(4.1665795894e-2f));
  y = fma(y, r, broadcast(1.6666665459e-1f));
  y = fma(y, r, broadcast(5.0000001201e-1f));
  y = fma(y, r * r, r + 1.0f);
  y *= reinterpret_cast<F>((n + 127) << 23);
  y = x < broadcast(-87.0f) ? F{} : y;
  y = x > broadcast(88.0f) ? broadcast(__builtin_inff()) : y;
  return x == x ? y : x;
}

}  // namespace bitsmith::BITSMITH_ISA

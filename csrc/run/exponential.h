// exp of a vector, to about one unit in the last place.
#pragma once

#include "vectors.h"

namespace bitsmith::BITSMITH_ISA {

// exp(x); below -87 it is 0, above 88 infinite. NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r (Cephes' expf).
BITSMITH_INLINE Floats exponential(Floats x) {
  const Floats bounded = min(max(x, splat(-87.0f)), splat(88.0f));
  const Ints n = rint_to_ints(bounded * 1.44269504f);
  const Floats whole = convert<Floats>(n);
  Floats r = fma(whole, splat(-0.693359375f), bounded);
  r = fma(whole, splat(2.12194440e-4f), r);
  Floats y = splat(1.9875691500e-4f);
  y = fma(y, r, splat(1.3981999507e-3f));
  y = fma(y, r, splat(8.3334519073e-3f));
  y = fma(y, r, splat(4.1665795894e-2f));
  y = fma(y, r, splat(1.6666665459e-1f));
  y = fma(y, r, splat(5.0000001201e-1f));
  y = fma(y, r * r, r + 1.0f);
  y *= as<Floats>((n + 127) << 23);
  y = x < splat(-87.0f) ? Floats{} : y;
  y = x > splat(88.0f) ? splat(__builtin_inff()) : y;
  return x == x ? y : x;
}

}  // namespace bitsmith::BITSMITH_ISA

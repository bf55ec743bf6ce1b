// Vectors of unsigned bytes: the four operations that a scan of a code book takes.
#pragma once

#include "vectors.h"

namespace bitsmith::BITSMITH_ISA {

constexpr int kByteLanes = 4 * kLanes;
typedef uint8_t ByteLanes __attribute__((vector_size(kByteLanes)));

BITSMITH_INLINE ByteLanes bytes_of(uint8_t x) { return ByteLanes{} + x; }

BITSMITH_INLINE ByteLanes smaller(ByteLanes a, ByteLanes b) {
#if defined(__AVX512BW__)
  return as<ByteLanes>(_mm512_min_epu8(as<__m512i>(a), as<__m512i>(b)));
#elif defined(__AVX2__)
  return as<ByteLanes>(_mm256_min_epu8(as<__m256i>(a), as<__m256i>(b)));
#elif defined(__SSE2__)
  return as<ByteLanes>(_mm_min_epu8(as<__m128i>(a), as<__m128i>(b)));
#elif defined(__aarch64__)
  return as<ByteLanes>(vminq_u8(as<uint8x16_t>(a), as<uint8x16_t>(b)));
#else
  return a < b ? a : b;
#endif
}

// a + b, at most 255
BITSMITH_INLINE ByteLanes add_bounded(ByteLanes a, ByteLanes b) {
#if defined(__AVX512BW__)
  return as<ByteLanes>(_mm512_adds_epu8(as<__m512i>(a), as<__m512i>(b)));
#elif defined(__AVX2__)
  return as<ByteLanes>(_mm256_adds_epu8(as<__m256i>(a), as<__m256i>(b)));
#elif defined(__SSE2__)
  return as<ByteLanes>(_mm_adds_epu8(as<__m128i>(a), as<__m128i>(b)));
#elif defined(__aarch64__)
  return as<ByteLanes>(vqaddq_u8(as<uint8x16_t>(a), as<uint8x16_t>(b)));
#else
  const ByteLanes sum = a + b;
  return sum < a ? bytes_of(255) : sum;
#endif
}

// What is true of each lane.
#if defined(__AVX512BW__)
typedef __mmask64 ByteMask;
BITSMITH_INLINE ByteMask equal(ByteLanes a, ByteLanes b) {
  return _mm512_cmpeq_epi8_mask(as<__m512i>(a), as<__m512i>(b));
}
BITSMITH_INLINE ByteMask below(ByteLanes a, ByteLanes b) {
  return _mm512_cmplt_epu8_mask(as<__m512i>(a), as<__m512i>(b));
}
BITSMITH_INLINE ByteMask any_bit(ByteMask among, ByteLanes a, ByteLanes bits) {
  return _mm512_mask_test_epi8_mask(among, as<__m512i>(a), as<__m512i>(bits));
}
BITSMITH_INLINE ByteLanes choose(ByteMask mask, ByteLanes yes, ByteLanes no) {
  return as<ByteLanes>(_mm512_mask_blend_epi8(mask, as<__m512i>(no), as<__m512i>(yes)));
}
#else
typedef int8_t ByteMask __attribute__((vector_size(kByteLanes)));
BITSMITH_INLINE ByteMask equal(ByteLanes a, ByteLanes b) { return as<ByteMask>(a == b); }
BITSMITH_INLINE ByteMask below(ByteLanes a, ByteLanes b) { return as<ByteMask>(smaller(a, b) != b); }
BITSMITH_INLINE ByteMask any_bit(ByteMask among, ByteLanes a, ByteLanes bits) {
  return among & as<ByteMask>((a & bits) != 0);
}
BITSMITH_INLINE ByteLanes choose(ByteMask mask, ByteLanes yes, ByteLanes no) {
#if defined(__AVX2__)
  return as<ByteLanes>(_mm256_blendv_epi8(as<__m256i>(no), as<__m256i>(yes), as<__m256i>(mask)));
#else
  const ByteLanes bits = as<ByteLanes>(mask);
  return (yes & bits) | (no & ~bits);
#endif
}
#endif

}  // namespace bitsmith::BITSMITH_ISA

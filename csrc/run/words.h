// The words of a panel's block, of kLanes rows.
#pragma once

#include "vectors.h"

namespace bitsmith::BITSMITH_ISA {

BITSMITH_INLINE Words word(const uint8_t *p, int index) { return load<Words>(p + 64 * index); }
BITSMITH_INLINE Floats real(const uint8_t *p, int index) { return load<Floats>(p + 64 * index); }
BITSMITH_INLINE Words nibbles(Words v, bool high) { return (high ? v >> 4 : v) & 0x0f0f0f0fu; }

// A number taken from each byte, as signed bytes; the bytes of v are below 128.
BITSMITH_INLINE Words bytes_less(Words v, uint32_t number) {
  return ((v | 0x80808080u) - number * 0x01010101u) ^ 0x80808080u;
}

// Entries of a table of words.
BITSMITH_INLINE Words gather(const uint32_t *table, Words index) {
#if defined(__AVX512F__)
  return as<Words>(_mm512_i32gather_epi32(as<__m512i>(index), table, 4));
#elif defined(__AVX2__)
  return as<Words>(_mm256_i32gather_epi32(reinterpret_cast<const int *>(table), as<__m256i>(index), 4));
#else
  Words found;
  for (int i = 0; i < kLanes; ++i) found[i] = table[index[i]];
  return found;
#endif
}

// zero + byte, or zero - byte where a bit of the word's byte `from` says so: of its lower four bits, or its upper ones.
// Bytes must be less than zero, and zero at most 64.
template <int zero>
BITSMITH_INLINE Words negated(Words bytes, Words signs, int from, bool upper) {
  [[maybe_unused]] constexpr uint32_t kZero = zero * 0x01010101u;
#if defined(__AVX512BW__)
  const __m512i places = _mm512_add_epi8(_mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0),
                                         _mm512_set1_epi8(static_cast<char>(from)));
  const __m512i spread = _mm512_shuffle_epi8(as<__m512i>(signs), places);
  const __mmask64 minus = _mm512_test_epi8_mask(spread, _mm512_set1_epi32(upper ? 0x80402010 : 0x08040201));
  const __m512i base = _mm512_set1_epi8(zero), b = as<__m512i>(bytes);
  return as<Words>(_mm512_mask_sub_epi8(_mm512_add_epi8(base, b), minus, base, b));
#elif defined(__AVX2__)
  const __m256i places =
      _mm256_add_epi8(_mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c),
                      _mm256_set1_epi8(static_cast<char>(from)));
  const __m256i bit = _mm256_set1_epi32(upper ? static_cast<int>(0x80402010u) : 0x08040201);
  const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(as<__m256i>(signs), places), bit);
  const Words minus = as<Words>(_mm256_cmpeq_epi8(spread, bit));
  return (kZero + bytes) - ((bytes & minus) << 1);
#else
  const Words bits = signs >> (8 * from + (upper ? 4 : 0)) & 15u;
  const Words minus = (bits * 0x00204081u & 0x01010101u) * 255u;  // bit i to byte i
  return (kZero + bytes) - ((bytes & minus) << 1);                // no byte borrows from the next
#endif
}

}  // namespace bitsmith::BITSMITH_ISA

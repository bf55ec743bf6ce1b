// Integer products: the codes of weights, four bytes in each lane, with inputs rounded to int8.
#pragma once

#include "vectors.h"

namespace bitsmith::BITSMITH_ISA {

// How often loops over vectors are unrolled. Without wide vectors unrolling gains nothing.
constexpr int kUnrolled = kLanes >= 8 ? 8 : 1;

// Codes beyond 127 are called wide; each is a signed number plus 128. VNNI multiplies them as they are, and the caller
// subtracts what the 128 added. The other instructions cannot: AVX2's saturate, and ARM's take signed bytes only. There
// the product is taken with the number itself.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool kWideAsTheyAre = true;
#else
constexpr bool kWideAsTheyAre = false;
#endif

// Products of bytes, added in pairs, as halves of words.
#if defined(__AVX512BW__) && !defined(__AVX512VNNI__)
#define BITSMITH_HALVES 1
BITSMITH_INLINE Words pairs(Words codes, int32_t x) {
  return as<Words>(_mm512_maddubs_epi16(as<__m512i>(codes), _mm512_set1_epi32(x)));
}
BITSMITH_INLINE Words add_halves(Words a, Words b) {
  return as<Words>(_mm512_add_epi16(as<__m512i>(a), as<__m512i>(b)));
}
BITSMITH_INLINE Ints words_of(Words halves) {
  return as<Ints>(_mm512_madd_epi16(as<__m512i>(halves), _mm512_set1_epi16(1)));
}
#elif defined(__AVX2__) && !defined(__AVX512BW__) && !defined(__AVXVNNI__)
#define BITSMITH_HALVES 1
BITSMITH_INLINE Words pairs(Words codes, int32_t x) {
  return as<Words>(_mm256_maddubs_epi16(as<__m256i>(codes), _mm256_set1_epi32(x)));
}
BITSMITH_INLINE Words add_halves(Words a, Words b) {
  return as<Words>(_mm256_add_epi16(as<__m256i>(a), as<__m256i>(b)));
}
BITSMITH_INLINE Ints words_of(Words halves) {
  return as<Ints>(_mm256_madd_epi16(as<__m256i>(halves), _mm256_set1_epi16(1)));
}
#else
#define BITSMITH_HALVES 0
#endif

// Adds to each lane of `total` the products of its four codes with the four signed bytes of x. x must not hold -128.
template <bool wide>
BITSMITH_INLINE Ints dot4(Ints total, Words codes, int32_t x) {
#if defined(__AVX512VNNI__)
  return as<Ints>(_mm512_dpbusd_epi32(as<__m512i>(total), as<__m512i>(codes), _mm512_set1_epi32(x)));
#elif defined(__AVXVNNI__)
  return as<Ints>(_mm256_dpbusd_avx_epi32(as<__m256i>(total), as<__m256i>(codes), _mm256_set1_epi32(x)));
#elif defined(__AVX512BW__)
  __m512i a = as<__m512i>(codes), b = _mm512_set1_epi32(x);
  if constexpr (wide) {
    a = _mm512_xor_si512(a, _mm512_set1_epi8(-128));
    b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
    a = _mm512_abs_epi8(a);
  }
  const __m512i products = _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
  return total + as<Ints>(products);
#elif defined(__AVX2__)
  __m256i a = as<__m256i>(codes), b = _mm256_set1_epi32(x);
  if constexpr (wide) {
    a = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
    b = _mm256_sign_epi8(b, a);
    a = _mm256_abs_epi8(a);
  }
  const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
  return total + as<Ints>(products);
#elif defined(__aarch64__)
  if constexpr (wide) codes ^= 0x80808080u;
  const int8x16_t a = as<int8x16_t>(codes), b = vreinterpretq_s8_s32(vdupq_n_s32(x));
#if defined(__ARM_FEATURE_DOTPROD)
  return as<Ints>(vdotq_s32(as<int32x4_t>(total), a, b));
#else
  const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
  return as<Ints>(vpadalq_s16(as<int32x4_t>(total), pairs));
#endif
#else
  if constexpr (wide) codes ^= 0x80808080u;
  for (int byte = 0; byte < 4; ++byte) {
    const Words raised = codes << (24 - 8 * byte);
    const Ints code = wide ? as<Ints>(raised) >> 24 : as<Ints>(raised >> 24);
    total += code * static_cast<int8_t>(x >> (8 * byte));
  }
  return total;
#endif
}

// Sums of such products, one of each lane. Where processors have no VNNI, products of narrow codes are added in 16 bits
// as long as they fit, which takes half as many instructions.
template <int bits, bool wide>
class Sums {
 public:
  BITSMITH_INLINE void start(Ints total) { total_ = total; }

  // j: number of the word in its run. last: whether no other word follows
  BITSMITH_INLINE void add(Words codes, int32_t x, int j, bool last) {
#if BITSMITH_HALVES
    if constexpr (!wide && kTogether > 1) {
      halves_ = add_halves(halves_, pairs(codes, x));
      if (last || j % kTogether == kTogether - 1) {
        total_ += words_of(halves_);
        halves_ = Words{};
      }
      return;
    }
#endif
    static_cast<void>(j), static_cast<void>(last);
    total_ = dot4<wide>(total_, codes, x);
  }
  BITSMITH_INLINE Ints total() const { return total_; }

 private:
  static constexpr int kFits = 32767 / (2 * 127 * ((1 << bits) - 1));
  static constexpr int kTogether = kFits >= 8 ? 8 : kFits >= 4 ? 4 : kFits >= 2 ? 2 : 1;

  Ints total_{};
  Words halves_{};
};

}  // namespace bitsmith::BITSMITH_ISA

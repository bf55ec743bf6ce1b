// Vectors of the instruction set this file is compiled for: L lanes of 32 bits, and the few operations that the
// compiler's vector types do not spell.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BITSMITH_INLINE inline __attribute__((always_inline))

namespace bitsmith::BITSMITH_ISA {

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX2__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif

constexpr int kUnrolled = L >= 8 ? 8 : 1;  // how often loops over vectors are; without wide ones it gains nothing

typedef float F __attribute__((vector_size(4 * L)));
typedef int32_t I __attribute__((vector_size(4 * L)));
typedef uint32_t U __attribute__((vector_size(4 * L)));
typedef uint16_t H __attribute__((vector_size(2 * L)));
typedef int8_t S8 __attribute__((vector_size(L)));

template <class V>
BITSMITH_INLINE V load(const void *p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
BITSMITH_INLINE void store(void *p, V v) {
  std::memcpy(p, &v, sizeof v);
}

BITSMITH_INLINE F broadcast(float x) { return F{} + x; }
BITSMITH_INLINE I broadcast(int32_t x) { return I{} + x; }
BITSMITH_INLINE F to_float(I v) { return __builtin_convertvector(v, F); }
BITSMITH_INLINE F to_float(U v) { return __builtin_convertvector(reinterpret_cast<I>(v), F); }  // below 2^31
BITSMITH_INLINE F max(F a, F b) { return a > b ? a : b; }
BITSMITH_INLINE F min(F a, F b) { return a < b ? a : b; }
BITSMITH_INLINE F magnitude(F a) { return reinterpret_cast<F>(reinterpret_cast<I>(a) & 0x7fffffff); }

// a * b + c, rounded once where the processor can
BITSMITH_INLINE F fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// The nearest integers, half to even, for |a| < 2^22
BITSMITH_INLINE I nearest(F a) {
  const F magic = broadcast(12582912.0f);  // 1.5 * 2^23: the integer stands in the low bits of the mantissa
  return reinterpret_cast<I>(a + magic) - reinterpret_cast<I>(magic);
}

BITSMITH_INLINE float sum(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float total = 0;
  for (int i = 0; i < L; ++i) total += v[i];
  return total;
#endif
}

BITSMITH_INLINE int32_t sum(I v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v));
#else
  int32_t total = 0;
  for (int i = 0; i < L; ++i) total += v[i];
  return total;
#endif
}

BITSMITH_INLINE float largest(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float best = v[0];
  for (int i = 1; i < L; ++i) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

// float16 in the low halves of the lanes
BITSMITH_INLINE F from_half(U bits) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(bits)));
#elif defined(__F16C__)
  const __m256i packed = _mm256_packus_epi32(reinterpret_cast<__m256i>(bits), reinterpret_cast<__m256i>(bits));
  return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  const U rest = (bits & 0x7fffu) << 13;
  const F value = reinterpret_cast<F>(rest) * 0x1p112f;                      // exact, denormals included
  const U endless = reinterpret_cast<U>(rest >= 0x0f800000u) & 0x7f800000u;  // infinities and NaN
  return reinterpret_cast<F>(reinterpret_cast<U>(value) | endless | (bits & 0x8000u) << 16);
#endif
}

BITSMITH_INLINE F load_half(const void *p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load<__m256i>(p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load<__m128i>(p));
#else
  return from_half(__builtin_convertvector(load<H>(p), U));
#endif
}

BITSMITH_INLINE F load_bfloat(const void *p) {
  return reinterpret_cast<F>(__builtin_convertvector(load<H>(p), U) << 16);
}

// float16, to nearest, half to even; saturates to infinity
BITSMITH_INLINE void store_half(void *p, F v) {
#if defined(__AVX512F__)
  store(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  store(p, vcvt_f16_f32(v));
#else
  const U bits = reinterpret_cast<U>(v), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  const U normal = (rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13;
  const F tiny = reinterpret_cast<F>(rest) + 0.5f;  // adding 1/2 rounds at 2^-24, the step of denormals
  const U denormal = reinterpret_cast<U>(tiny) - 0x3f000000u;
  U half = reinterpret_cast<U>(rest < 0x38800000u) & denormal;
  half |= reinterpret_cast<U>((rest >= 0x38800000u) & (rest < 0x477ff000u)) & normal;
  half |= reinterpret_cast<U>(rest >= 0x477ff000u) & 0x7c00u;
  half |= reinterpret_cast<U>(rest > 0x7f800000u) & 0x0200u;
  store(p, __builtin_convertvector(half | sign, H));
#endif
}

// acc + the sum over the four bytes of each lane of w (unsigned) times x (signed).
// wide: codes reach beyond 127; they come as value + 128, and where the processor multiplies signed bytes only in
// pairs that saturate, the product is taken with the value itself. `kWideOffset` is what then remains to be corrected.
#if defined(__AVX512VNNI__)
constexpr bool kWideCorrected = true;
#else
constexpr bool kWideCorrected = false;
#endif

template <bool wide>
BITSMITH_INLINE I dot4(I acc, U w, int32_t x) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<I>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(w), _mm512_set1_epi32(x)));
#elif defined(__AVX512BW__)
  __m512i a = reinterpret_cast<__m512i>(w), b = _mm512_set1_epi32(x);
  if constexpr (wide) {
    a = _mm512_xor_si512(a, _mm512_set1_epi8(-128));
    b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
    a = _mm512_abs_epi8(a);
  }
  const __m512i pairs = _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1));
  return acc + reinterpret_cast<I>(pairs);
#elif defined(__AVX2__)
  __m256i a = reinterpret_cast<__m256i>(w), b = _mm256_set1_epi32(x);
  if constexpr (wide) {
    a = _mm256_xor_si256(a, _mm256_set1_epi8(-128));
    b = _mm256_sign_epi8(b, a);
    a = _mm256_abs_epi8(a);
  }
  const __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
  return acc + reinterpret_cast<I>(pairs);
#elif defined(__aarch64__)
  if constexpr (wide) w ^= 0x80808080u;
  const int8x16_t a = reinterpret_cast<int8x16_t>(w), b = vreinterpretq_s8_s32(vdupq_n_s32(x));
#if defined(__ARM_FEATURE_DOTPROD)
  return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), a, b));
#else
  const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
  return reinterpret_cast<I>(vpadalq_s16(reinterpret_cast<int32x4_t>(acc), pairs));
#endif
#else
  if constexpr (wide) w ^= 0x80808080u;
  for (int byte = 0; byte < 4; ++byte) {
    const I at = reinterpret_cast<I>(w << (24 - 8 * byte));
    const I code = wide ? at >> 24 : reinterpret_cast<I>(reinterpret_cast<U>(at) >> 24);
    acc += code * static_cast<int8_t>(x >> (8 * byte));
  }
  return acc;
#endif
}

// Each byte below 16 replaced by its entry of a table of 16 bytes.
BITSMITH_INLINE U look_up(const uint8_t *table, U index) {
#if defined(__AVX512BW__)
  const __m512i entries = _mm512_broadcast_i32x4(load<__m128i>(table));
  return reinterpret_cast<U>(_mm512_shuffle_epi8(entries, reinterpret_cast<__m512i>(index)));
#elif defined(__AVX2__)
  const __m256i entries = _mm256_broadcastsi128_si256(load<__m128i>(table));
  return reinterpret_cast<U>(_mm256_shuffle_epi8(entries, reinterpret_cast<__m256i>(index)));
#elif defined(__aarch64__)
  return reinterpret_cast<U>(vqtbl1q_u8(load<uint8x16_t>(table), reinterpret_cast<uint8x16_t>(index)));
#else
  uint8_t bytes[sizeof(U)];
  store(bytes, index);
  for (uint8_t &byte : bytes) byte = table[byte];
  return load<U>(bytes);
#endif
}

}  // namespace bitsmith::BITSMITH_ISA

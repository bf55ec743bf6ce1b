// Vectors of 32-bit lanes, as many as a register of the instruction set holds, and the operations on them.
//
// Only kernels include this file. Everything in it lives in a namespace of the instruction set. Without that, the
// linker would merge functions that were compiled with different flags.
//
// Operations give the same result on every instruction set, and each is rounded on its own. Three do not: `fma`, which
// rounds once where the processor can, and the two sums over all lanes. Quantizing uses none of these three.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BITSMITH_INLINE inline __attribute__((always_inline))
#define BITSMITH_INLINE_LAMBDA __attribute__((always_inline))

namespace bitsmith::BITSMITH_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef double Doubles __attribute__((vector_size(8 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int8_t SignedBytes __attribute__((vector_size(kLanes)));

template <class V>
BITSMITH_INLINE V load(const void *from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
BITSMITH_INLINE void store(void *to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// The same bits as another type.
template <class To, class From>
BITSMITH_INLINE To as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return reinterpret_cast<To>(v);
}

// The same numbers as another type. Floats are truncated to integers; integers lose their upper bits.
template <class To, class From>
BITSMITH_INLINE To convert(From v) {
  return __builtin_convertvector(v, To);
}

// One number in every lane. x - 0 is x, and keeps the sign of -0.
BITSMITH_INLINE Floats splat(float x) { return x - Floats{}; }
BITSMITH_INLINE Ints splat(int32_t x) { return x - Ints{}; }

// The smaller and the larger. The result is b where the two are equal (0 and -0 are), or where one of them is NaN.
BITSMITH_INLINE Floats min(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

BITSMITH_INLINE Floats max(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Bounded by both; NaN stays NaN.
BITSMITH_INLINE Floats clip(Floats a, float low, float high) { return min(splat(high), max(splat(low), a)); }

BITSMITH_INLINE Floats absolute(Floats a) { return as<Floats>(as<Ints>(a) & 0x7fffffff); }

// a * b + c, rounded once where the processor can
BITSMITH_INLINE Floats fma(Floats a, Floats b, Floats c) {
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

// The nearest integer, half to even; keeps the sign of zero.
BITSMITH_INLINE Floats rint(Floats a) {
#if defined(__AVX512F__)
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
  return vrndnq_f32(a);
#else
  const Floats size = absolute(a);
  const Floats whole = (size + 0x1p23f) - 0x1p23f;
  return as<Floats>(as<Ints>(size < 0x1p23f ? whole : size) | (as<Ints>(a) & INT32_MIN));
#endif
}

// The nearest integer, half to even, as an integer. |a| must be below 2^22.
BITSMITH_INLINE Ints rint_to_ints(Floats a) {
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23 moves the integer into the low bits of the mantissa
  return as<Ints>(a + magic) - as<Ints>(magic);
}

// Over all lanes
BITSMITH_INLINE float sum(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
#endif
}

BITSMITH_INLINE int32_t sum(Ints v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(as<__m512i>(v));
#else
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
#endif
}

BITSMITH_INLINE float largest(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

// float16 in the low halves of the lanes, to float32
BITSMITH_INLINE Floats from_half(Words bits) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(as<__m512i>(bits)));
#elif defined(__F16C__)
  const __m256i packed = _mm256_packus_epi32(as<__m256i>(bits), as<__m256i>(bits));
  return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(bits)));
#else
  const Words size = (bits & 0x7fffu) << 13;
  const Floats value = as<Floats>(size) * 0x1p112f;                    // exact, denormals included
  const Words endless = as<Words>(size >= 0x0f800000u) & 0x7f800000u;  // infinities and NaN
  return as<Floats>(as<Words>(value) | endless | (bits & 0x8000u) << 16);
#endif
}

// float16 in memory, to float32
BITSMITH_INLINE Floats load_half(const void *from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load<__m128i>(from));
#elif defined(__aarch64__)
  return vcvt_f32_f16(load<float16x4_t>(from));
#else
  return from_half(convert<Words>(load<Halves>(from)));
#endif
}

// bfloat16 in memory, to float32
BITSMITH_INLINE Floats load_bfloat(const void *from) { return as<Floats>(convert<Words>(load<Halves>(from)) << 16); }

// To float16 in memory: to nearest, half to even. What is too large becomes infinite.
BITSMITH_INLINE void store_half(void *to, Floats v) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store(to, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  store(to, vcvt_f16_f32(v));
#else
  const Words bits = as<Words>(v), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  const Words normal = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
  const Floats tiny = as<Floats>(size) + 0.5f;  // adding 1/2 rounds at 2^-24, the step of denormals
  const Words denormal = as<Words>(tiny) - 0x3f000000u;
  Words half = as<Words>(size < 0x38800000u) & denormal;
  half |= as<Words>((size >= 0x38800000u) & (size < 0x477ff000u)) & normal;
  half |= as<Words>(size >= 0x477ff000u) & 0x7c00u;
  half |= as<Words>(size > 0x7f800000u) & 0x0200u;
  store(to, convert<Halves>(half | sign));
#endif
}

// The entries of a table that the lowest four bits of the lanes of `index` name.
BITSMITH_INLINE Floats look_up(const float (&table)[16], Ints index) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(as<__m512i>(index), load<Floats>(table));
#elif defined(__AVX2__)
  const __m256i places = as<__m256i>(index);
  const Floats low = _mm256_permutevar8x32_ps(load<Floats>(table), places);
  const Floats high = _mm256_permutevar8x32_ps(load<Floats>(table + 8), places);
  return _mm256_blendv_ps(low, high, as<__m256>(index << 28));
#else
  Floats found;
  for (int i = 0; i < kLanes; ++i) found[i] = table[index[i] & 15];
  return found;
#endif
}

// The same of a table of 32; every index must be in it.
BITSMITH_INLINE Floats look_up(const float (&table)[32], Ints index) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(load<Floats>(table), as<__m512i>(index), load<Floats>(table + 16));
#else
  Floats found;
  for (int i = 0; i < kLanes; ++i) found[i] = table[index[i] & 31];
  return found;
#endif
}

// Each byte below 16, replaced by its entry of a table of 16 bytes
BITSMITH_INLINE Words look_up(const uint8_t (&table)[16], Words index) {
#if defined(__AVX512BW__)
  const __m512i entries = _mm512_broadcast_i32x4(load<__m128i>(table));
  return as<Words>(_mm512_shuffle_epi8(entries, as<__m512i>(index)));
#elif defined(__AVX2__)
  const __m256i entries = _mm256_broadcastsi128_si256(load<__m128i>(table));
  return as<Words>(_mm256_shuffle_epi8(entries, as<__m256i>(index)));
#elif defined(__aarch64__)
  return as<Words>(vqtbl1q_u8(load<uint8x16_t>(table), as<uint8x16_t>(index)));
#else
  uint8_t bytes[sizeof(Words)];
  store(bytes, index);
  for (uint8_t &byte : bytes) byte = table[byte];
  return load<Words>(bytes);
#endif
}

// The lanes of a (0 .. kLanes - 1) and b (from kLanes on) that I... name
template <int... I>
BITSMITH_INLINE Floats pick(Floats a, Floats b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Ints{I...});
#endif
}

template <int Step, int... I>
BITSMITH_INLINE void swap_corners(Floats &upper, Floats &lower, std::integer_sequence<int, I...>) {
  const Floats a = upper, b = lower;
  upper = pick<((I & Step) ? kLanes + I - Step : I)...>(a, b);
  lower = pick<((I & Step) ? kLanes + I : I + Step)...>(a, b);
}

template <int Step = kLanes / 2>
BITSMITH_INLINE void transpose(Floats (&rows)[kLanes]) {
  if constexpr (Step > 0) {
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & Step)) swap_corners<Step>(rows[i], rows[i + Step], std::make_integer_sequence<int, kLanes>());
    }
    transpose<Step / 2>(rows);
  }
}

}  // namespace bitsmith::BITSMITH_ISA

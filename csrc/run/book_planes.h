// One row times matrices in code books, for processors that look up bytes in tables of 128 (AVX-512 VBMI).
//
// A word of each of 16 rows holds the indices of four vectors. One look-up finds a byte of all 64 points: a plane,
// whose four bytes of a row belong to four vectors. So the inputs are brought into the order of planes, once for a row,
// and the sums of integers are those of `dot`, to the bit. Points of eight weights have two planes, each of the 2-bit
// level numbers of four weights: i, i + 2, i + 4, i + 6. Points of four weights have four planes of levels (IQ3_XXS),
// or two of pairs of 4-bit levels: i, i + 2 (IQ3_S).
#pragma once

#include "fine.h"

namespace bitsmith::BITSMITH_ISA {

// How the planes of a type are found; those of most types are not.
template <class T>
struct Planes {
  static constexpr bool kThere = false;
};

// The codes of 32 inputs in the order of planes: byte b of word i belongs to weight i of vector b. Where half a run has
// a scale of its own, the words of the first half come first, then those of the second, with zeros for the other.
struct alignas(64) PlaneBlock {
  int8_t upper[64], lower[64];
};

template <class T>
void to_planes(const FineBlock *x, int count, PlaneBlock *out);

// Products of a run, as `dot` gives them; half: of a run where each has its scale
template <class T>
Ints dot_planes(Ints acc, const Words (&planes)[8], const PlaneBlock &x, int half);

#if defined(__AVX512VBMI__)

template <int planes, int N>
struct PlaneTable {
  alignas(64) uint8_t bytes[planes][N] = {};

  template <class Byte>
  static constexpr PlaneTable of(const uint16_t (&points)[N], const Byte &byte) {
    PlaneTable table;
    for (int plane = 0; plane < planes; ++plane)
      for (int i = 0; i < N; ++i) table.bytes[plane][i] = byte(points[i], plane);
    return table;
  }
};

// Of eight weights: weight plane + 2 f in bits 2 f.
constexpr uint8_t four_of_eight(uint16_t point, int plane) {
  uint8_t byte = 0;
  for (int f = 0; f < 4; ++f) byte |= (point >> (2 * (plane + 2 * f)) & 3) << (2 * f);
  return byte;
}
// 64 plus the level of a weight of IQ3_XXS
constexpr uint8_t raised_level(uint16_t point, int plane) { return 64 + kIq3XxsLevels[point >> (4 * plane) & 7]; }
// Levels of the weights plane and plane + 2 of IQ3_S
constexpr uint8_t two_levels(uint16_t point, int plane) {
  return static_cast<uint8_t>(kIq3SLevels[point >> (4 * plane) & 7] | kIq3SLevels[point >> (4 * (plane + 2)) & 7] << 4);
}

constexpr auto kIq1Planes = PlaneTable<2, 2048>::of(kIq1Points, four_of_eight);
constexpr auto kIq2XxsPlanes = PlaneTable<2, 256>::of(kIq2XxsPoints, four_of_eight);
constexpr auto kIq2XsPlanes = PlaneTable<2, 512>::of(kIq2XsPoints, four_of_eight);
constexpr auto kIq2SPlanes = PlaneTable<2, 1024>::of(kIq2SPoints, four_of_eight);
constexpr auto kIq3XxsPlanes = PlaneTable<4, 256>::of(kIq3XxsPoints, raised_level);
constexpr auto kIq3SPlanes = PlaneTable<2, 512>::of(kIq3SPoints, two_levels);

// Levels plus the type's zero, by the lower or the upper two bits of a nibble
alignas(16) constexpr uint8_t kIq2Low[16] = {72, 89, 107, 0, 72, 89, 107, 0, 72, 89, 107};
alignas(16) constexpr uint8_t kIq2High[16] = {72, 72, 72, 72, 89, 89, 89, 89, 107, 107, 107, 107};
alignas(16) constexpr uint8_t kIq1Low[16] = {9, 17, 25, 0, 9, 17, 25, 0, 9, 17, 25};
alignas(16) constexpr uint8_t kIq1High[16] = {9, 9, 9, 9, 17, 17, 17, 17, 25, 25, 25, 25};

// Where the four bytes of a row's word find something in a word: bit numbers, 0 to 31.
struct Bits {
  int at[4];
};

constexpr int packed(int a, int b, int c, int d) {
  return static_cast<int>(static_cast<uint32_t>(a) | static_cast<uint32_t>(b) << 8 | static_cast<uint32_t>(c) << 16 |
                          static_cast<uint32_t>(d) << 24);
}

// Bytes a, b, c, d of each word, as a word.
BITSMITH_INLINE Words bytes_at(Words v, int a, int b, int c, int d) {
  const __m512i places =
      _mm512_add_epi8(_mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0), _mm512_set1_epi32(packed(a, b, c, d)));
  return as<Words>(_mm512_shuffle_epi8(as<__m512i>(v), places));
}

// For each byte, whether a bit of its word is set.
BITSMITH_INLINE __mmask64 bits_at(Words v, const Bits &bits) {
  const int *at = bits.at;
  return _mm512_test_epi8_mask(
      as<__m512i>(bytes_at(v, at[0] / 8, at[1] / 8, at[2] / 8, at[3] / 8)),
      _mm512_set1_epi32(packed(1 << (at[0] & 7), 1 << (at[1] & 7), 1 << (at[2] & 7), 1 << (at[3] & 7))));
}

// Entries of a table of N bytes. The index of a byte: its lower seven bits, and a bit in each of the masks.
template <int N>
BITSMITH_INLINE __m512i entries(const uint8_t *table, __m512i index, const __mmask64 *masks) {
  if constexpr (N == 128) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  } else {
    constexpr int kHalf = N / 2, kMasks = N == 256 ? 0 : N == 512 ? 1 : N == 1024 ? 2 : 3;
    return _mm512_mask_blend_epi8(masks[kMasks], entries<kHalf>(table, index, masks),
                                  entries<kHalf>(table + kHalf, index, masks));
  }
}

// twice zero - byte where the mask says so
template <int zero>
BITSMITH_INLINE Words turned(__m512i byte, __mmask64 minus) {
  return as<Words>(_mm512_mask_sub_epi8(byte, minus, _mm512_set1_epi8(static_cast<char>(2 * zero)), byte));
}

// The eight planes of a run of vectors of eight, from those of four weights each: levels plus zero, without signs.
template <int N>
BITSMITH_INLINE void eight_planes(const PlaneTable<2, N> &table, Words index, const __mmask64 *masks,
                                  const uint8_t (&low)[16], const uint8_t (&high)[16], Words (&out)[8]) {
#pragma GCC unroll 2
  for (int plane = 0; plane < 2; ++plane) {
    const Words found = as<Words>(entries<N>(table.bytes[plane], as<__m512i>(index), masks));
    const Words a = found & 0x0f0f0f0fu, b = found >> 4 & 0x0f0f0f0fu;
    out[plane] = look_up(low, a);
    out[plane + 2] = look_up(high, a);
    out[plane + 4] = look_up(low, b);
    out[plane + 6] = look_up(high, b);
  }
}

// Signs of weights: bit i of byte b is that of weight i of vector b.
BITSMITH_INLINE void sign_planes(Words signs, Words (&out)[8]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    out[i] = turned<64>(as<__m512i>(out[i]),
                        _mm512_test_epi8_mask(as<__m512i>(signs), _mm512_set1_epi8(static_cast<char>(1 << i))));
}

// kOfFour: whether points have four weights; find: the planes of a run, as they are multiplied
struct OfEight {
  static constexpr bool kThere = true, kOfFour = false;
};
struct OfFour {
  static constexpr bool kThere = true, kOfFour = true;
};

template <>
struct Planes<IQ2_XXS> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words index = word(p, 2 * run);
    const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index))};
    eight_planes(kIq2XxsPlanes, index, masks, kIq2Low, kIq2High, out);
    sign_planes(even_signs(word(p, 2 * run + 1)), out);
  }
};

template <>
struct Planes<IQ2_XS> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words a = word(p, 2 * run), b = word(p, 2 * run + 1);
    const Words index = bytes_at(a, 0, 2, 128, 128) | bytes_at(b, 128, 128, 0, 2);
    const Words upper = bytes_at(a, 1, 3, 128, 128) | bytes_at(b, 128, 128, 1, 3);  // a bit of the index, seven signs
    const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)), bits_at(upper, {{0, 8, 16, 24}})};
    eight_planes(kIq2XsPlanes, index, masks, kIq2Low, kIq2High, out);
    const Words sevens = upper >> 1 & 0x7f7f7f7fu;
    sign_planes(with_eighth(sevens), out);
  }
};

template <>
struct Planes<IQ2_S> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words index = word(p, run), high = word(p, 16 + run / 4);
    const int at = 8 * (run & 3);
    const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)), bits_at(high, {{at, at + 2, at + 4, at + 6}}),
                               bits_at(high, {{at + 1, at + 3, at + 5, at + 7}})};
    eight_planes(kIq2SPlanes, index, masks, kIq2Low, kIq2High, out);
    sign_planes(word(p, 8 + run), out);
  }
};

// IQ1 has no signs; a bit makes the levels of a run or of a vector smaller by 2.
template <int step>
BITSMITH_INLINE void iq1_planes(Words index, Words high, int at, Words (&out)[8]) {
  const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)),
                             bits_at(high, {{at, at + step, at + 2 * step, at + 3 * step}}),
                             bits_at(high, {{at + 1, at + step + 1, at + 2 * step + 1, at + 3 * step + 1}}),
                             bits_at(high, {{at + 2, at + step + 2, at + 2 * step + 2, at + 3 * step + 2}})};
  eight_planes(kIq1Planes, index, masks, kIq1Low, kIq1High, out);
}

template <>
struct Planes<IQ1_S> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words high = word(p, 8 + run / 2);
    const int at = 16 * (run & 1);
    iq1_planes<3>(word(p, run), high, at, out);
    const Words lower = as<Words>(as<Ints>(high << (16 - at)) >> 31) & 0x02020202u;
#pragma GCC unroll 8
    for (Words &each : out) each -= lower;
  }
};

template <>
struct Planes<IQ1_M> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words high = word(p, 8 + run / 2);
    const int at = 16 * (run & 1);
    iq1_planes<4>(word(p, run), high, at, out);
    const Words lower =
        as<Words>(_mm512_maskz_mov_epi8(bits_at(high, {{at + 3, at + 7, at + 11, at + 15}}), _mm512_set1_epi8(2)));
#pragma GCC unroll 8
    for (Words &each : out) each -= lower;  // no byte borrows from the next
  }
};

// Signs of half a run, of four vectors of four: bit i of byte b is that of weight i of vector b.
BITSMITH_INLINE Words half_signs(Words signs, int half) {
  const Words both = bytes_at(signs, 2 * half, 2 * half, 2 * half + 1, 2 * half + 1);
  return (both & 0x000f000fu) | (both >> 4 & 0x0f000f00u);
}

template <>
struct Planes<IQ3_XXS> : OfFour {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words signs = even_signs(word(p, 16 + run));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i index = as<__m512i>(word(p, 2 * run + half)), own = as<__m512i>(half_signs(signs, half));
      const __mmask64 masks[] = {_mm512_movepi8_mask(index)};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        out[4 * half + i] = turned<64>(entries<256>(kIq3XxsPlanes.bytes[i], index, masks),
                                       _mm512_test_epi8_mask(own, _mm512_set1_epi8(static_cast<char>(1 << i))));
    }
  }
};

template <>
struct Planes<IQ3_S> : OfFour {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words signs = word(p, 18 + run), high = word(p, 16 + run / 4);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int at = 8 * (run & 3) + 4 * half;
      const __m512i index = as<__m512i>(word(p, 2 * run + half)), own = as<__m512i>(half_signs(signs, half));
      const __mmask64 masks[] = {_mm512_movepi8_mask(index), bits_at(high, {{at, at + 1, at + 2, at + 3}})};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Words two = as<Words>(entries<512>(kIq3SPlanes.bytes[i & 1], index, masks));
        const Words raised = ((i < 2 ? two : two >> 4) & 0x0f0f0f0fu) | 0x10101010u;
        out[4 * half + i] =
            turned<16>(as<__m512i>(raised), _mm512_test_epi8_mask(own, _mm512_set1_epi8(static_cast<char>(1 << i))));
      }
    }
  }
};

template <class T>
void to_planes(const FineBlock *x, int count, PlaneBlock *out) {
  alignas(32) int8_t places[32];
  for (int i = 0; i < 8; ++i)
    for (int b = 0; b < 4; ++b)
      places[4 * i + b] = static_cast<int8_t>(Planes<T>::kOfFour ? 16 * (i / 4) + 4 * b + i % 4 : 8 * b + i);
  const __m256i order = load<__m256i>(places);
  const auto put = [&](const int8_t *from, int8_t *to) {
    const __m256i all = _mm256_permutexvar_epi8(order, load<__m256i>(from));
    if constexpr (T::kSub == 32) {
      store(to, all);
    } else {
      store(to, _mm256_and_si256(all, _mm256_set1_epi32(0x0000ffff)));
      store(to + 32, _mm256_and_si256(all, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
  };
  for (int block = 0; block < count; ++block) {
    put(x[block].upper, out[block].upper);
    put(x[block].lower, out[block].lower);
  }
}

template <class T>
BITSMITH_INLINE Ints dot_planes(Ints acc, const Words (&planes)[8], const PlaneBlock &x, int half) {
  Ints upper{};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    upper = dot4<false>(upper, planes[i], four(x.upper + 32 * half + 4 * i));
    acc = dot4<false>(acc, planes[i], four(x.lower + 32 * half + 4 * i));
  }
  return acc + (upper << 7);
}

#endif

}  // namespace bitsmith::BITSMITH_ISA

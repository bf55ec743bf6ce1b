// One row times matrices in code books, for processors that look up bytes in tables of 128 (AVX-512 VBMI).
//
// A word of each of 16 rows holds the indices of four vectors. One look-up finds a byte of all 64 points: a plane,
// whose four bytes of a row belong to four vectors. So the inputs are brought into the order of planes, once for a row,
// and the sums of integers are those of `dot`, to the bit. Points have two planes: those of eight weights have the
// 2-bit level numbers of four weights in each, those of four weights the 3-bit level numbers of two. Beside a number
// come the signs, so that one more look-up gives a signed level.
#pragma once

#include "fine.h"

namespace bitsmith::BITSMITH_ISA {

// How the planes of a type are found; those of most types are not.
template <class T>
struct Planes {
  static constexpr bool kThere = false;
};

// The codes of 32 inputs in the order of planes: byte b of word i belongs to weight i of vector b. Where half a run has
// a scale of its own, bytes 0 and 1 of word 4 h + i belong to weight i of the vectors 2 h and 2 h + 1, bytes 2 and 3 to
// weight 4 + i.
struct alignas(64) PlaneBlock {
  int8_t upper[32], lower[32];
};

template <class T>
void to_planes(const FineBlock *x, int count, PlaneBlock *out);

// Products of the planes `first` .. `last` - 1 of a run, as `dot` gives them.
Ints dot_planes(Ints acc, const Words (&planes)[8], const PlaneBlock &x, int first, int last);

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

// Of eight weights: level numbers of weights 4 plane + f, in bits 2 f.
constexpr uint8_t four_of_eight(uint16_t point, int plane) { return static_cast<uint8_t>(point >> (8 * plane)); }
// Of four weights: level numbers of weights plane + 2 and plane, in bits 0 and 3.
constexpr uint8_t two_of_four(uint16_t point, int plane) {
  return static_cast<uint8_t>((point >> (4 * plane + 8) & 7) | (point >> (4 * plane) & 7) << 3);
}

constexpr auto kIq1Planes = PlaneTable<2, 2048>::of(kIq1Points, four_of_eight);
constexpr auto kIq2XxsPlanes = PlaneTable<2, 256>::of(kIq2XxsPoints, four_of_eight);
constexpr auto kIq2XsPlanes = PlaneTable<2, 512>::of(kIq2XsPoints, four_of_eight);
constexpr auto kIq2SPlanes = PlaneTable<2, 1024>::of(kIq2SPoints, four_of_eight);
constexpr auto kIq3XxsPlanes = PlaneTable<2, 256>::of(kIq3XxsPoints, two_of_four);
constexpr auto kIq3SPlanes = PlaneTable<2, 512>::of(kIq3SPoints, two_of_four);

// Codes by six bits.
struct CodeTable {
  alignas(64) uint8_t codes[64] = {};

  template <class Code>
  static constexpr CodeTable of(const Code &code) {
    CodeTable table;
    for (int i = 0; i < 64; ++i) table.codes[i] = static_cast<uint8_t>(code(i));
    return table;
  }
  BITSMITH_INLINE Words operator()(Words index) const {
    return as<Words>(_mm512_permutexvar_epi8(as<__m512i>(index), load<__m512i>(codes)));
  }
};

// By the level numbers of two weights, then their signs: codes of the first or of the second
template <int which>
constexpr CodeTable kIq2Codes = CodeTable::of([](int i) {
  const int level = kIq2Levels[i >> (2 * which) & 3];
  return 64 + (i >> (4 + which) & 1 ? -level : level);
});
// The same with one bit for both in place of signs, of smaller levels.
template <int which>
constexpr CodeTable kIq1Codes =
    CodeTable::of([](int i) { return kIq1Levels[i >> (2 * which) & 3] - 2 * (i >> 4 & 1); });
// Of weight `weight` of four, whose sign is in bit weight + 1: by a level number in bit 3 (weights 0 and 1) or 0. So
// neither numbers nor signs are shifted.
constexpr uint8_t signed_code(const uint8_t (&levels)[8], int zero, int weight, int i) {
  const int level = levels[weight < 2 ? i >> 3 : i & 7];
  return static_cast<uint8_t>(zero + (i >> (weight + 1) & 1 ? -level : level));
}
template <int weight>
constexpr CodeTable kIq3XxsCodes = CodeTable::of([](int i) { return signed_code(kIq3XxsLevels, 64, weight, i); });
template <int weight>
constexpr CodeTable kIq3SCodes = CodeTable::of([](int i) { return signed_code(kIq3SLevels, 16, weight, i); });

// Seven signs and an eighth that makes their number even.
struct EvenTable {
  alignas(64) uint8_t bytes[128] = {};
  constexpr EvenTable() {
    for (int i = 0; i < 128; ++i) {
      int odd = 0;
      for (int bit = 0; bit < 7; ++bit) odd ^= i >> bit & 1;
      bytes[i] = static_cast<uint8_t>(i | odd << 7);
    }
  }
};
constexpr EvenTable kEven;

// Bits where the mask has them from a, elsewhere from b.
template <int mask>
BITSMITH_INLINE Words join(Words a, Words b) {
  return as<Words>(_mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), as<__m512i>(a), as<__m512i>(b), 0xca));
}

// Eight bits of each word from bit a, b, c, d on, as its bytes.
BITSMITH_INLINE Words bytes_from(Words v, int a, int b, int c, int d) {
  const auto at = [](int bit) { return static_cast<uint64_t>(bit & 63); };
  const auto four = [&](int by) { return at(a + by) | at(b + by) << 8 | at(c + by) << 16 | at(d + by) << 24; };
  const __m512i places = _mm512_set1_epi64(static_cast<long long>(four(0) | four(32) << 32));
  return as<Words>(_mm512_multishift_epi64_epi8(places, as<__m512i>(v)));
}

// Bytes 0 and 2 of each word, then those of the same word of a second vector.
struct PairPlaces {
  alignas(64) uint8_t bytes[64] = {};
  constexpr PairPlaces() {
    for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(i / 4 * 4 + 2 * (i & 1) + (i & 2 ? 64 : 0));
  }
};
constexpr PairPlaces kPairs;

// Half `half` of each word of a, then that of b.
template <int half>
BITSMITH_INLINE Words halves_of(Words a, Words b) {
  return as<Words>(half ? _mm512_mask_blend_epi16(0xaaaaaaaau, as<__m512i>(a >> 16), as<__m512i>(b))
                        : _mm512_mask_blend_epi16(0xaaaaaaaau, as<__m512i>(a), as<__m512i>(b << 16)));
}

// Bytes of seven signs, whose upper bits do not matter, as eight.
BITSMITH_INLINE Words eight_signs(Words sevens) {
  return as<Words>(
      _mm512_permutex2var_epi8(load<__m512i>(kEven.bytes), as<__m512i>(sevens), load<__m512i>(kEven.bytes + 64)));
}

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

// The eight planes of a run of vectors of eight, from those of four weights each. beside: for the two weights of a
// nibble at a time, what stands in bits 4 and 5 of the index of `first` and `second`
template <bool apart, int N>
BITSMITH_INLINE void eight_planes(const PlaneTable<2, N> &table, Words index, const __mmask64 *masks,
                                  const Words (&beside)[4], const CodeTable &first, const CodeTable &second,
                                  Words (&out)[8]) {
  Words found[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) found[i] = as<Words>(entries<N>(table.bytes[i], as<__m512i>(index), masks));
  if constexpr (apart) {
    const Words one = found[0];
    found[0] = halves_of<0>(one, found[1]);
    found[1] = halves_of<1>(one, found[1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Words a = join<15>(found[i], beside[2 * i]), b = join<15>(found[i] >> 4, beside[2 * i + 1]);
    out[4 * i] = first(a);
    out[4 * i + 1] = second(a);
    out[4 * i + 2] = first(b);
    out[4 * i + 3] = second(b);
  }
}

// The same with signs: bit i of byte b is that of weight i of vector b.
template <bool apart, int N>
BITSMITH_INLINE void signed_planes(const PlaneTable<2, N> &table, Words index, const __mmask64 *masks, Words signs,
                                   Words (&out)[8]) {
  if constexpr (apart)
    eight_planes<true>(table, index, masks,
                       {bytes_from(signs, -4, 4, 0, 8), bytes_from(signs, -2, 6, 2, 10),
                        bytes_from(signs, 12, 20, 16, 24), bytes_from(signs, 14, 22, 18, 26)},
                       kIq2Codes<0>, kIq2Codes<1>, out);
  else
    eight_planes<false>(table, index, masks, {signs << 4, signs << 2, signs, signs >> 2}, kIq2Codes<0>, kIq2Codes<1>,
                        out);
}

// The four planes of half a run of vectors of four. signs: of the run, bit i of byte b is that of weight 8 b + i.
// codes: of the weights 0 to 3
template <int N>
BITSMITH_INLINE void four_planes(const PlaneTable<2, N> &table, Words index, const __mmask64 *masks, Words signs,
                                 int half, const CodeTable *const (&codes)[4], Words *out) {
  const int at = 16 * half;
  const Words beside = bytes_from(signs, at - 1, at + 3, at + 7, at + 11);  // the first sign in bit 1
  const Words even = as<Words>(entries<N>(table.bytes[0], as<__m512i>(index), masks));
  const Words odd = as<Words>(entries<N>(table.bytes[1], as<__m512i>(index), masks));
  out[0] = (*codes[0])(join<0x38>(even, beside));
  out[1] = (*codes[1])(join<0x38>(odd, beside));
  out[2] = (*codes[2])(join<7>(even, beside));
  out[3] = (*codes[3])(join<7>(odd, beside));
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
    signed_planes<false>(kIq2XxsPlanes, index, masks, eight_signs(bytes_from(word(p, 2 * run + 1), 0, 7, 14, 21)), out);
  }
};

template <>
struct Planes<IQ2_XS> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words a = word(p, 2 * run), b = word(p, 2 * run + 1);
    const Words index = both_bytes(a, b, 0), upper = both_bytes(a, b, 1);  // upper: a bit of the index, seven signs
    const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)),
                               _mm512_test_epi8_mask(as<__m512i>(upper), _mm512_set1_epi8(1))};
    signed_planes<true>(kIq2XsPlanes, index, masks, eight_signs(upper >> 1), out);
  }

 private:
  // Bytes `first` and `first` + 2 of each word of a, then of b.
  static BITSMITH_INLINE Words both_bytes(Words a, Words b, int first) {
    const __m512i places = _mm512_add_epi8(load<__m512i>(kPairs.bytes), _mm512_set1_epi8(static_cast<char>(first)));
    return as<Words>(_mm512_permutex2var_epi8(as<__m512i>(a), places, as<__m512i>(b)));
  }
};

template <>
struct Planes<IQ2_S> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words index = word(p, run), high = word(p, 16 + run / 4);
    const int at = 8 * (run & 3);
    const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)), bits_at(high, {{at, at + 2, at + 4, at + 6}}),
                               bits_at(high, {{at + 1, at + 3, at + 5, at + 7}})};
    signed_planes<true>(kIq2SPlanes, index, masks, word(p, 8 + run), out);
  }
};

// IQ1 has no signs; a bit makes the levels of a run or of a vector smaller by 2. lower: those of the first and second
// four planes, in bit 4 of each byte
template <bool apart, int step>
BITSMITH_INLINE void iq1_planes(Words index, Words high, int at, const Words (&lower)[2], Words (&out)[8]) {
  const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)),
                             bits_at(high, {{at, at + step, at + 2 * step, at + 3 * step}}),
                             bits_at(high, {{at + 1, at + step + 1, at + 2 * step + 1, at + 3 * step + 1}}),
                             bits_at(high, {{at + 2, at + step + 2, at + 2 * step + 2, at + 3 * step + 2}})};
  eight_planes<apart>(kIq1Planes, index, masks, {lower[0], lower[0], lower[1], lower[1]}, kIq1Codes<0>, kIq1Codes<1>,
                      out);
}

template <>
struct Planes<IQ1_S> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words high = word(p, 8 + run / 2);
    const int at = 16 * (run & 1);
    const Words lower = as<Words>(as<Ints>(high << (16 - at)) >> 31);
    iq1_planes<false, 3>(word(p, run), high, at, {lower, lower}, out);
  }
};

template <>
struct Planes<IQ1_M> : OfEight {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words high = word(p, 8 + run / 2);
    const int at = 16 * (run & 1);
    iq1_planes<true, 4>(
        word(p, run), high, at,
        {bytes_from(high, at - 1, at + 3, at - 1, at + 3), bytes_from(high, at + 7, at + 11, at + 7, at + 11)}, out);
  }
};

template <>
struct Planes<IQ3_XXS> : OfFour {
  static BITSMITH_INLINE void find(const uint8_t *p, int run, Words (&out)[8]) {
    const Words signs = eight_signs(bytes_from(word(p, 16 + run), 0, 7, 14, 21));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Words index = word(p, 2 * run + half);
      const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index))};
      four_planes(kIq3XxsPlanes, index, masks, signs, half,
                  {&kIq3XxsCodes<0>, &kIq3XxsCodes<1>, &kIq3XxsCodes<2>, &kIq3XxsCodes<3>}, out + 4 * half);
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
      const Words index = word(p, 2 * run + half);
      const __mmask64 masks[] = {_mm512_movepi8_mask(as<__m512i>(index)),
                                 bits_at(high, {{at, at + 1, at + 2, at + 3}})};
      four_planes(kIq3SPlanes, index, masks, signs, half,
                  {&kIq3SCodes<0>, &kIq3SCodes<1>, &kIq3SCodes<2>, &kIq3SCodes<3>}, out + 4 * half);
    }
  }
};

template <class T>
void to_planes(const FineBlock *x, int count, PlaneBlock *out) {
  alignas(32) int8_t places[32];
  for (int i = 0; i < 8; ++i) {
    for (int b = 0; b < 4; ++b) {
      const int apart = 16 * (i / 4) + 8 * (b & 1) + 4 * (b / 2) + i % 4, quad = 16 * (i / 4) + 4 * b + i % 4;
      places[4 * i + b] = static_cast<int8_t>(Planes<T>::kOfFour ? quad : T::kSub == 16 ? apart : 8 * b + i);
    }
  }
  const __m256i order = load<__m256i>(places);
  for (int block = 0; block < count; ++block) {
    store(out[block].upper, _mm256_permutexvar_epi8(order, load<__m256i>(x[block].upper)));
    store(out[block].lower, _mm256_permutexvar_epi8(order, load<__m256i>(x[block].lower)));
  }
}

BITSMITH_INLINE Ints dot_planes(Ints acc, const Words (&planes)[8], const PlaneBlock &x, int first, int last) {
  Ints upper{};
#pragma GCC unroll 8
  for (int i = first; i < last; ++i) {
    upper = dot4<false>(upper, planes[i], four(x.upper + 4 * i));
    acc = dot4<false>(acc, planes[i], four(x.lower + 4 * i));
  }
  return acc + (upper << 7);
}

#endif

}  // namespace bitsmith::BITSMITH_ISA

// What the words of a block mean for ggml's types of one to three bits: code books (IQ1, IQ2, IQ3), Q1_0, Q2_0, TQ1_0
// and TQ2_0. See types.h for the names.
//
// Layouts: `dequantize_row_*` of llama.cpp; all words lie as in files. Points of code books come from tables of words,
// one gather for 16 rows: of IQ3 the four weights' bytes, of IQ1 and IQ2 eight weights' fields of four bits. Signs are
// applied in registers. Integer scales are 2 q + 1.
#pragma once

#include "code_books.h"
#include "panels.h"
#include "vectors.h"
#include "words.h"

namespace bitsmith::BITSMITH_ISA {

// Points as words: of eight weights with fields of four bits, weight i in the lower and i + 4 in the upper half of byte
// i; of four weights with their levels as bytes.
template <int N>
struct PointTable {
  alignas(64) uint32_t words[N] = {};

  static constexpr PointTable fields(const uint16_t (&points)[N]) {
    PointTable table;
    for (int i = 0; i < N; ++i)
      for (int weight = 0; weight < 8; ++weight)
        table.words[i] |= static_cast<uint32_t>(points[i] >> (2 * weight) & 3) << (8 * (weight & 3) + 4 * (weight / 4));
    return table;
  }

  static constexpr PointTable levels(const uint16_t (&points)[N], const uint8_t (&level)[8]) {
    PointTable table;
    for (int i = 0; i < N; ++i)
      for (int weight = 0; weight < 4; ++weight)
        table.words[i] |= static_cast<uint32_t>(level[points[i] >> (4 * weight) & 7]) << (8 * weight);
    return table;
  }
};

alignas(16) constexpr uint8_t kIq2Levels[16] = {8, 25, 43};
alignas(16) constexpr uint8_t kIq1Levels[16] = {9, 17, 25};  // eight times the level, plus 16, plus 1 of the shift
constexpr uint8_t kIq3XxsLevels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr uint8_t kIq3SLevels[8] = {1, 3, 5, 7, 9, 11, 13, 15};

constexpr auto kIq1Table = PointTable<2048>::fields(kIq1Points);
constexpr auto kIq2XxsTable = PointTable<256>::fields(kIq2XxsPoints);
constexpr auto kIq2XsTable = PointTable<512>::fields(kIq2XsPoints);
constexpr auto kIq2STable = PointTable<1024>::fields(kIq2SPoints);
constexpr auto kIq3XxsTable = PointTable<256>::levels(kIq3XxsPoints, kIq3XxsLevels);
constexpr auto kIq3STable = PointTable<512>::levels(kIq3SPoints, kIq3SLevels);

// Columns 4 quad .. of a vector of eight, as levels.
template <int N>
BITSMITH_INLINE Words point_levels(const PointTable<N> &table, Words index, int quad, const uint8_t (&levels)[16]) {
  return look_up(levels, nibbles(gather(table.words, index), quad));
}

// The lower four nibbles of each word, one in each byte.
BITSMITH_INLINE Words spread_nibbles(Words v) {
  v = (v | v << 8) & 0x00ff00ffu;
  return (v | v << 4) & 0x0f0f0f0fu;
}

// 2 q + 1 of each byte
BITSMITH_INLINE Words odd_scales(Words q) { return (q << 1) | 0x01010101u; }

// Seven signs of a vector in each byte, and an eighth that makes their number even.
BITSMITH_INLINE Words with_eighth(Words sevens) {
  alignas(16) static constexpr uint8_t kOdd[16] = {0, 128, 128, 0, 128, 0, 0, 128, 128, 0, 0, 128, 0, 128, 128, 0};
  return sevens | look_up(kOdd, (sevens ^ sevens >> 4) & 0x0f0f0f0fu);
}

// Signs of four vectors, seven of each in the lower 28 bits, as bytes.
BITSMITH_INLINE Words even_signs(Words v) {
  return with_eighth((v & 0x7fu) | (v << 1 & 0x7f00u) | (v << 2 & 0x7f0000u) | (v << 3 & 0x7f000000u));
}

struct NoScales {
  static constexpr bool kTable = false, kFloats = false;
  static constexpr int lift(int) { return 0; }
  static BITSMITH_INLINE Floats d(const uint8_t *, const uint8_t *half) { return load_half(half); }
};

struct Q1_0 : NoScales {
  static constexpr PanelType kType = PanelType::q1_0;
  static constexpr int kSub = 32, kZero = 0, kBits = 2;
  static constexpr bool kWide = false, kAffine = false, kPlain = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return (word(p, run) >> (4 * j) & 15u) * 0x00408102u & 0x02020202u;  // bit i to bit 8 i + 1
  }
};

struct Q2_0 : NoScales {
  static constexpr PanelType kType = PanelType::q2_0;
  static constexpr int kSub = 32, kZero = 0, kBits = 2;
  static constexpr bool kWide = false, kAffine = false, kPlain = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    Words v = word(p, 2 * run + j / 4) >> (8 * (j & 3)) & 255u;
    v = (v | v << 12) & 0x000f000fu;
    return (v | v << 6) & 0x03030303u;
  }
};

struct TQ2_0 : NoScales {
  static constexpr PanelType kType = PanelType::tq2_0;
  static constexpr int kSub = 32, kZero = 0, kBits = 2;
  static constexpr bool kWide = false, kAffine = false, kPlain = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return word(p, 8 * (run / 4) + j) >> (2 * (run & 3)) & 0x03030303u;
  }
};

struct TQ1_0 : NoScales {
  static constexpr PanelType kType = PanelType::tq1_0;
  static constexpr int kSub = 32, kZero = 0, kBits = 2;
  static constexpr bool kWide = false, kAffine = false, kPlain = true;
  // Digit `at` of base 3 of each byte, which is a fraction of 256.
  static BITSMITH_INLINE Words digit(Words v, int at) {
    const uint32_t power = at == 0 ? 1 : at == 1 ? 3 : at == 2 ? 9 : at == 3 ? 27 : 81;
    const Words even = (v & 0x00ff00ffu) * power & 0x00ff00ffu, odd = (v >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu;
    return (even * 3u >> 8 & 0x00ff00ffu) | (odd * 3u & 0xff00ff00u);
  }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    if (run < 5) return digit(word(p, j), run);
    const int at = 2 * (run - 5) + j / 4;
    return at < 5 ? digit(word(p, 8 + (j & 3)), at) : digit(word(p, 12), j & 3);
  }
};

// Types whose blocks have integer scales and a float16 in front.
template <int shift>
struct BookScale {
  static constexpr bool kTable = false, kWide = false, kAffine = false, kPlain = false, kFloats = false;
  static constexpr int lift(int) { return 0; }
  static BITSMITH_INLINE Floats d(const uint8_t *, const uint8_t *half) {
    return load_half(half) * (1.0f / (1 << shift));
  }
};

struct IQ2_XXS : BookScale<3> {
  static constexpr PanelType kType = PanelType::iq2_xxs;
  static constexpr int kSub = 32, kZero = 6, kBits = 7;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words point = word(p, 2 * run) >> (8 * (j / 2)) & 255u;
    return negated<64>(point_levels(kIq2XxsTable, point, j & 1, kIq2Levels), even_signs(word(p, 2 * run + 1)), j / 2,
                       j & 1);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    Words all{};
#pragma GCC unroll 4
    for (int byte = 0; byte < 4; ++byte) all |= word(p, 2 * (4 * index + byte) + 1) >> 28 << (8 * byte);
    return odd_scales(all);
  }
};

struct IQ2_XS : BookScale<3> {
  static constexpr PanelType kType = PanelType::iq2_xs;
  static constexpr int kSub = 16, kZero = 6, kBits = 7;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words point = word(p, 2 * run + j / 4) >> (16 * (j / 2 & 1)) & 511u;
    return negated<64>(point_levels(kIq2XsTable, point, j & 1, kIq2Levels), signs(p, run), j / 2, j & 1);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    return odd_scales(spread_nibbles(word(p, 16 + index / 2) >> (16 * (index & 1)) & 0xffffu));
  }

 private:
  static BITSMITH_INLINE Words signs(const uint8_t *p, int run) {
    const Words a = word(p, 2 * run), b = word(p, 2 * run + 1);
    return even_signs((a >> 9 & 127u) | (a >> 25) << 7 | (b >> 9 & 127u) << 14 | (b >> 25) << 21);
  }
};

struct IQ2_S : BookScale<3> {
  static constexpr PanelType kType = PanelType::iq2_s;
  static constexpr int kSub = 16, kZero = 6, kBits = 7;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words low = word(p, run) >> (8 * (j / 2)) & 255u;
    const Words high = word(p, 16 + run / 4) >> (8 * (run & 3) + 2 * (j / 2)) & 3u;
    return negated<64>(point_levels(kIq2STable, low | high << 8, j & 1, kIq2Levels), word(p, 8 + run), j / 2, j & 1);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    return odd_scales(spread_nibbles(word(p, 18 + index / 2) >> (16 * (index & 1)) & 0xffffu));
  }
};

struct IQ3_XXS : BookScale<2> {
  static constexpr PanelType kType = PanelType::iq3_xxs;
  static constexpr int kSub = 32, kZero = 6, kBits = 7;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words point = word(p, 2 * run + j / 4) >> (8 * (j & 3)) & 255u;
    return negated<64>(gather(kIq3XxsTable.words, point), even_signs(word(p, 16 + run)), j / 2, j & 1);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    Words all{};
#pragma GCC unroll 4
    for (int byte = 0; byte < 4; ++byte) all |= word(p, 16 + 4 * index + byte) >> 28 << (8 * byte);
    return odd_scales(all);
  }
};

struct IQ3_S : BookScale<0> {
  static constexpr PanelType kType = PanelType::iq3_s;
  static constexpr int kSub = 32, kZero = 4, kBits = 5;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words low = word(p, 2 * run + j / 4) >> (8 * (j & 3)) & 255u;
    const Words high = word(p, 16 + run / 4) >> (8 * (run & 3) + j) & 1u;
    return negated<16>(gather(kIq3STable.words, low | high << 8), word(p, 18 + run), j / 2, j & 1);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    return odd_scales(spread_nibbles(word(p, 26) >> (16 * index) & 0xffffu));
  }
};

// IQ1: levels are eight times those of the point, and 1 more or less.
struct IQ1_S : BookScale<3> {
  static constexpr PanelType kType = PanelType::iq1_s;
  static constexpr int kSub = 32, kZero = 4, kBits = 5;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words high = word(p, 8 + run / 2) >> (16 * (run & 1));
    const Words point = (word(p, run) >> (8 * (j / 2)) & 255u) | (high >> (3 * (j / 2)) & 7u) << 8;
    const Words lower = as<Words>(as<Ints>(high << 16) >> 31) & 0x02020202u;
    return point_levels(kIq1Table, point, j & 1, kIq1Levels) - lower;
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    const Words a = word(p, 8 + 2 * index) >> 12, b = word(p, 9 + 2 * index) >> 12;
    return odd_scales((a & 7u) | (a >> 16 & 7u) << 8 | (b & 7u) << 16 | (b >> 16 & 7u) << 24);
  }
};

struct IQ1_M : BookScale<3> {
  static constexpr PanelType kType = PanelType::iq1_m;
  static constexpr int kSub = 16, kZero = 4, kBits = 5;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    const Words high = word(p, 8 + run / 2) >> (16 * (run & 1) + 4 * (j / 2));
    const Words point = (word(p, run) >> (8 * (j / 2)) & 255u) | (high & 7u) << 8;
    const Words lower = as<Words>(as<Ints>(high << 28) >> 31) & 0x02020202u;
    return point_levels(kIq1Table, point, j & 1, kIq1Levels) - lower;
  }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) {
    const Words a = word(p, 12), b = word(p, 13);
    return from_half((a >> 12 & 15u) | (a >> 28) << 4 | (b >> 12 & 15u) << 8 | (b >> 28) << 12) * 0.125f;
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    const Words v = word(p, 12 + index / 2) >> (16 * (index & 1));
    return odd_scales((v & 7u) | (v << 5 & 0x700u) | (v << 10 & 0x70000u) | (v << 15 & 0x7000000u));
  }
};

}  // namespace bitsmith::BITSMITH_ISA

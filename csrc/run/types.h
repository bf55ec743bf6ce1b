// What the words of a block mean for each type: codes, integer scales and mins, of kLanes rows at once.
//
// Layouts: ggml-quants.h and `dequantize_row_*` of llama.cpp; those of Q3_K, Q5_K and Q6_K are packed anew
// (repack.cpp), so that most codes need one instruction. Columns of a block come in runs of 32; `lifted(p, run, j)` are
// the codes of columns 4 j .. 4 j + 3 of a run, one byte each, times 2^lift(run): they lie where they lay in the word.
// What is added to a code keeps it from being negative.
//
//   kSub      columns that share an integer scale (16 or 32); blocks of 32 have no integer scales
//   kZero     log2 of what is added to a code's value; -1: nothing
//   kBits     codes, without the lift, are below 2^kBits
//   kWide     codes reach beyond 127
//   kAffine   value = d * scale * code - dmin * min
//   kPlain    blocks of 256 have no integer scales all the same
//   kFloats   sub-blocks have scales of their own that are floats: `float_scale`, times 2^-116; d is one for the block
//   kTable    codes are rounded entries of a table of 16 floats, which exact products look up (`Table`)
//   scales    four integer scales, signed bytes; `mins` likewise, unsigned. Byte b of word i: of sub-block 4 i + b
#pragma once

#include "book_types.h"
#include "panels.h"
#include "vectors.h"
#include "words.h"

namespace bitsmith::BITSMITH_ISA {

struct NoLift {
  static constexpr bool kTable = false, kPlain = false, kFloats = false;
  static constexpr int lift(int) { return 0; }
};

// The scale d of each type. p points at the words of a block, half at its 16 float16 outside the words.
struct HalfScale : NoLift {
  static BITSMITH_INLINE Floats d(const uint8_t *, const uint8_t *half) { return load_half(half); }
};
struct WordScale : NoLift {  // float16 d and a second float16 (dmin, or m) in one word
  static BITSMITH_INLINE Floats low(Words v) { return from_half(v & 0xffffu); }
  static BITSMITH_INLINE Floats high(Words v) { return from_half(v >> 16); }
};

struct Q4_0 : HalfScale {
  static constexpr PanelType kType = PanelType::q4_0;
  static constexpr int kSub = 32, kZero = 3, kBits = 4;
  static constexpr bool kWide = false, kAffine = false;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) { return nibbles(word(p, j & 3), j > 3); }
};

struct Q4_1 : WordScale {
  static constexpr PanelType kType = PanelType::q4_1;
  static constexpr int kSub = 32, kZero = -1, kBits = 4;
  static constexpr bool kWide = false, kAffine = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) { return nibbles(word(p, 1 + (j & 3)), j > 3); }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return low(word(p, 0)); }
  static BITSMITH_INLINE Floats dmin(const uint8_t *p) { return -high(word(p, 0)); }
};

// Bits 4 j .. 4 j + 3 of a row's 32 high bits, each at bit 4 of its byte.
BITSMITH_INLINE Words fifth_bits(Words v, int j) {
  return (v >> (4 * j) & 15u) * 0x02040810u & 0x10101010u;  // bit i to bit 8 i + 4
}

struct Q5_0 : HalfScale {
  static constexpr PanelType kType = PanelType::q5_0;
  static constexpr int kSub = 32, kZero = 4, kBits = 5;
  static constexpr bool kWide = false, kAffine = false;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) {
    return nibbles(word(p, 1 + (j & 3)), j > 3) | fifth_bits(word(p, 0), j);
  }
};

struct Q5_1 : WordScale {
  static constexpr PanelType kType = PanelType::q5_1;
  static constexpr int kSub = 32, kZero = -1, kBits = 5;
  static constexpr bool kWide = false, kAffine = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) {
    return nibbles(word(p, 2 + (j & 3)), j > 3) | fifth_bits(word(p, 1), j);
  }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return low(word(p, 0)); }
  static BITSMITH_INLINE Floats dmin(const uint8_t *p) { return -high(word(p, 0)); }
};

struct Q8_0 : HalfScale {
  static constexpr PanelType kType = PanelType::q8_0;
  static constexpr int kSub = 32, kZero = 7, kBits = 8;
  static constexpr bool kWide = true, kAffine = false;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) { return word(p, j) ^ 0x80808080u; }
};

alignas(16) constexpr uint8_t kIq4Table[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                               129, 141, 153, 166, 181, 197, 217, 241};  // values plus 128

struct IQ4_NL : HalfScale {
  static constexpr PanelType kType = PanelType::iq4_nl;
  static constexpr int kSub = 32, kZero = 7, kBits = 8;
  static constexpr bool kWide = true, kAffine = false;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) {
    return look_up(kIq4Table, nibbles(word(p, j & 3), j > 3));
  }
};

alignas(16) constexpr uint8_t kMxfp4Table[16] = {16, 17, 18, 19, 20, 22, 24, 28,
                                                 16, 15, 14, 13, 12, 10, 8,  4};  // twice E2M1's values, plus 16

struct MXFP4 : NoLift {  // the scale, a power of two, is kept as bfloat16
  static constexpr PanelType kType = PanelType::mxfp4;
  static constexpr int kSub = 32, kZero = 4, kBits = 5;
  static constexpr bool kWide = false, kAffine = false;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int, int j) {
    return look_up(kMxfp4Table, nibbles(word(p, j & 3), j > 3));
  }
  static BITSMITH_INLINE Floats d(const uint8_t *, const uint8_t *half) { return load_bfloat(half); }
};

// Codes of MXFP4, and four scales of 16 columns each in word `first`, see repack.cpp.
template <int first>
struct FloatScales : NoLift {
  static constexpr int kSub = 16, kZero = 4, kBits = 5;
  static constexpr bool kWide = false, kAffine = false, kFloats = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return look_up(kMxfp4Table, nibbles(word(p, first + 1 + 4 * run + 2 * (j / 4) + (j & 1)), (j & 2) != 0));
  }
  static BITSMITH_INLINE Floats float_scale(const uint8_t *p, int sub) {
    const Words all = word(p, first);  // five bits of exponent and three of mantissa
    return as<Floats>((sub < 3 ? all << (20 - 8 * sub) : all >> 4) & 0x0ff00000u);
  }
};

struct NVFP4 : FloatScales<0> {
  static constexpr PanelType kType = PanelType::nvfp4;
  static BITSMITH_INLINE Floats d(const uint8_t *, const uint8_t *) { return splat(1.0f); }
};

struct NVFP4_64 : FloatScales<1> {
  static constexpr PanelType kType = PanelType::nvfp4_64;
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return real(p, 0); }
};

struct IQ4_XS : WordScale {
  static constexpr PanelType kType = PanelType::iq4_xs;
  static constexpr int kSub = 32, kZero = 7, kBits = 8;
  static constexpr bool kWide = true, kAffine = false;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return look_up(kIq4Table, nibbles(word(p, 2 + 4 * run + (j & 3)), j > 3));
  }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return low(word(p, 0)); }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    Words all{};
#pragma GCC unroll 4
    for (int byte = 0; byte < 4; ++byte) {
      const int sub = 4 * index + byte;
      const Words lower = word(p, 1) >> (4 * sub) & 15u, upper = word(p, 0) >> (16 + 2 * sub) & 3u;
      all |= (lower | upper << 4) << (8 * byte);
    }
    return bytes_less(all, 32);
  }
};

// Q4_K and Q5_K: eight scales and mins of six bits in words 1..3
struct SixBits : WordScale {
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return low(word(p, 0)); }
  static BITSMITH_INLINE Floats dmin(const uint8_t *p) { return high(word(p, 0)); }
  static BITSMITH_INLINE Words six(Words own, Words shared, int index) {
    return index == 0 ? own & 0x3f3f3f3fu : (shared & 0x0f0f0f0fu) | (own >> 2 & 0x30303030u);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) { return six(word(p, 1), word(p, 3), index); }
  static BITSMITH_INLINE Words mins(const uint8_t *p, int index) { return six(word(p, 2), word(p, 3) >> 4, index); }
};

struct Q4_K : SixBits {
  static constexpr PanelType kType = PanelType::q4_k;
  static constexpr int kSub = 32, kZero = -1, kBits = 4;
  static constexpr bool kWide = false, kAffine = true;
  static constexpr int lift(int run) { return run & 1 ? 4 : 0; }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return word(p, 4 + 8 * (run / 2) + j) & (run & 1 ? 0xf0f0f0f0u : 0x0f0f0f0fu);
  }
};

struct Q5_K
    : SixBits {  // words 4..43: codes in the lower five bits, and three more codes in the upper bits of each five
  static constexpr PanelType kType = PanelType::q5_k;
  static constexpr int kSub = 32, kZero = -1, kBits = 5;
  static constexpr bool kWide = false, kAffine = true;
  static constexpr int lift(int run) { return run > 4 ? 3 : 0; }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    if (run < 5) return word(p, 4 + 8 * run + j) & 0x1f1f1f1fu;
    const Words b = word(p, 12 + j), d = word(p, 28 + j);
    if (run == 5) return (word(p, 4 + j) & 0xe0e0e0e0u) | (b >> 3 & 0x18181818u);
    if (run == 6) return (word(p, 20 + j) & 0xe0e0e0e0u) | (d >> 3 & 0x18181818u);
    return (word(p, 36 + j) & 0xe0e0e0e0u) | (b >> 1 & 0x10101010u) | (d >> 2 & 0x08080808u);
  }
};

struct Q6_K : HalfScale {  // words 0..47: codes in the lower six bits, and one more in the upper bits of each three
  static constexpr PanelType kType = PanelType::q6_k;
  static constexpr int kSub = 16, kZero = 5, kBits = 6;
  static constexpr bool kWide = false, kAffine = false;
  static constexpr int lift(int run) { return run > 5 ? 2 : 0; }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    if (run < 6) return word(p, 8 * run + j) & 0x3f3f3f3fu;
    const int at = 8 * (run - 6) + j;
    const Words upper = (word(p, at) & 0xc0c0c0c0u) | (word(p, 16 + at) >> 2 & 0x30303030u);
    return upper | (word(p, 32 + at) >> 4 & 0x0c0c0c0cu);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) { return word(p, 48 + index); }
};

struct Q3_K : HalfScale {  // words 0..23: codes in bits 0..2 and 3..5, and two more in the upper bits of each three
  static constexpr PanelType kType = PanelType::q3_k;
  static constexpr int kSub = 16, kZero = 2, kBits = 3;
  static constexpr bool kWide = false, kAffine = false;
  static constexpr int lift(int run) { return run < 3 ? 0 : run < 6 ? 3 : 5; }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    if (run < 3) return word(p, 8 * run + j) & 0x07070707u;
    if (run < 6) return word(p, 8 * (run - 3) + j) & 0x38383838u;
    const Words shared = word(p, 8 + j);
    if (run == 6) return (word(p, j) & 0xc0c0c0c0u) | (shared >> 1 & 0x20202020u);
    return (word(p, 16 + j) & 0xc0c0c0c0u) | (shared >> 2 & 0x20202020u);
  }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) {
    const Words lower = word(p, 24 + (index & 1)) >> (index < 2 ? 0 : 4) & 0x0f0f0f0fu;
    const Words upper = word(p, 26) >> (2 * index) & 0x03030303u;
    return bytes_less(lower | upper << 4, 32);
  }
};

struct Q2_K : WordScale {  // 16 bytes of scales and mins, 64 of pairs, d and dmin
  static constexpr PanelType kType = PanelType::q2_k;
  static constexpr int kSub = 16, kZero = -1, kBits = 2;
  static constexpr bool kWide = false, kAffine = true;
  static constexpr int lift(int run) { return 2 * (run & 3); }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return word(p, 4 + 8 * (run / 4) + j) & 0x03030303u << lift(run);
  }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return low(word(p, 20)); }
  static BITSMITH_INLINE Floats dmin(const uint8_t *p) { return high(word(p, 20)); }
  static BITSMITH_INLINE Words scales(const uint8_t *p, int index) { return word(p, index) & 0x0f0f0f0fu; }
  static BITSMITH_INLINE Words mins(const uint8_t *p, int index) { return word(p, index) >> 4 & 0x0f0f0f0fu; }
};

// Grids, see panels.h. Their blocks have no integer scales.
template <class T, int weights>
struct GridBlock {
  static constexpr PanelType kType = static_cast<PanelType>(static_cast<int>(T::kFirst) + (weights / 64));
  static constexpr int kSub = 32;
  static BITSMITH_INLINE Floats dmin(const uint8_t *p) { return -real(p, 1); }
};

struct Int4Codes : NoLift {  // -8 .. 7
  static constexpr PanelType kFirst = PanelType::int4_32;
  static constexpr int kZero = 3, kBits = 4;
  static constexpr bool kWide = false, kAffine = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return nibbles(word(p, 2 + 4 * run + (j & 3)), j > 3);
  }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return real(p, 0); }
};

struct Int8Codes : NoLift {  // -128 .. 127
  static constexpr PanelType kFirst = PanelType::int8_32;
  static constexpr int kZero = 7, kBits = 8;
  static constexpr bool kWide = true, kAffine = true;
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) { return word(p, 2 + 8 * run + j); }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return real(p, 0); }
};

// NormalFloat4 (Dettmers et al. 2023, QLoRA, appendix E), and each entry in steps of 1 / 112, where the rounding errs
// least: 0.0017 in the mean square, a twentieth of what the four bits do.
struct Nf4 {
  static constexpr PanelType kFirst = PanelType::nf4_32;
  static constexpr float kValues[16] = {-1.0f,
                                        -0.6961928009986877f,
                                        -0.5250730514526367f,
                                        -0.39491748809814453f,
                                        -0.28444138169288635f,
                                        -0.18477343022823334f,
                                        -0.09105003625154495f,
                                        0.0f,
                                        0.07958029955625534f,
                                        0.16093020141124725f,
                                        0.24611230194568634f,
                                        0.33791524171829224f,
                                        0.44070982933044434f,
                                        0.5626170039176941f,
                                        0.7229568362236023f,
                                        1.0f};
  static constexpr float kStep = 1 / 112.0f;
  static constexpr uint8_t kRounded[16] = {16,  50,  69,  84,  96,  107, 118, 128,
                                           137, 146, 156, 166, 177, 191, 209, 240};  // plus 128
};

constexpr float twelfth(double x) { return static_cast<float>(x / 12.0); }

// bitsandbytes' FP4, which has two zeros. In steps of 1 / 120 all entries are exact but the smallest, 1 / 192, which
// becomes 1 / 120.
struct Fp4 {
  static constexpr PanelType kFirst = PanelType::fp4_32;
  static constexpr float kValues[16] = {
      twelfth(-12), twelfth(-8),     twelfth(-6), twelfth(-4), twelfth(-3), twelfth(-2), -twelfth(0.0625), 0.0f,
      0.0f,         twelfth(0.0625), twelfth(2),  twelfth(3),  twelfth(4),  twelfth(6),  twelfth(8),       twelfth(12)};
  static constexpr float kStep = 1 / 120.0f;
  static constexpr uint8_t kRounded[16] = {8,   48,  68,  88,  98,  108, 127, 128,
                                           128, 129, 148, 158, 168, 188, 208, 248};  // plus 128
};

// What a rounded entry stands for, in steps.
template <class Values>
struct Levels {
  float of[256] = {};
  constexpr Levels() {
    for (int i = 0; i < 16; ++i) of[Values::kRounded[i]] = Values::kValues[i] / Values::kStep;
  }
};

template <class Values>
struct TableCodes : NoLift {
  using Table = Values;
  static constexpr PanelType kFirst = Values::kFirst;
  static constexpr int kZero = 7, kBits = 8;
  static constexpr bool kWide = true, kAffine = false, kTable = true;
  static constexpr Levels<Values> kLevels{};
  // The numbers of entries, two a byte: word i of a run holds columns 4 i .. and, in the upper halves, 16 + 4 i ..
  static BITSMITH_INLINE Words entries(const uint8_t *p, int run, int i) { return word(p, 1 + 4 * run + i); }
  static BITSMITH_INLINE Words lifted(const uint8_t *p, int run, int j) {
    return look_up(Values::kRounded, nibbles(entries(p, run, j & 3), j > 3));
  }
  static BITSMITH_INLINE Floats scale(const uint8_t *p) { return real(p, 0); }
  static BITSMITH_INLINE Floats d(const uint8_t *p, const uint8_t *) { return real(p, 0) * Values::kStep; }
};

template <class Codes, int weights>
struct GridOf : Codes, GridBlock<Codes, weights> {};

// Whether sub-blocks of a type have scales of their own.
template <class T>
constexpr bool kScaled = T::kFloats || (layout_of(T::kType).weights == 256 && !T::kPlain);

template <class T>
BITSMITH_INLINE Words codes(const uint8_t *p, int run, int j) {
  return T::lifted(p, run, j) >> T::lift(run);  // what is below the codes is zero
}

// The integer scale, and the min, of a sub-block.
template <class T>
BITSMITH_INLINE Ints scale_of(const uint8_t *p, int sub) {
  return as<Ints>(T::scales(p, sub / 4) << (24 - 8 * (sub & 3))) >> 24;
}

// The scale of a sub-block, with that of its block: d.
template <class T>
BITSMITH_INLINE Floats scale_in(const uint8_t *p, Floats d, int sub) {
  if constexpr (T::kFloats)
    return d * (T::float_scale(p, sub) * 0x1p116f);
  else if constexpr (kScaled<T>)
    return d * convert<Floats>(scale_of<T>(p, sub));
  else
    return d;
}

template <class T>
BITSMITH_INLINE Ints min_of(const uint8_t *p, int sub) {
  return as<Ints>(T::mins(p, sub / 4) >> (8 * (sub & 3)) & 255u);
}

// The value of a code before its scales: what `codes` gives, less what was added. Tables have values of their own.
template <class T>
BITSMITH_INLINE float level(int code) {
  if constexpr (T::kTable)
    return T::kLevels.of[code];
  else
    return static_cast<float>(code - (T::kZero < 0 ? 0 : 1 << T::kZero));
}

// Call visit(T{}) with the struct of a grid's type.
template <class Visit>
BITSMITH_INLINE auto with_grid(PanelType type, const Visit &visit) {
  switch (type) {
    case PanelType::int4_32: return visit(GridOf<Int4Codes, 32>{});
    case PanelType::int4_64: return visit(GridOf<Int4Codes, 64>{});
    case PanelType::int4_128: return visit(GridOf<Int4Codes, 128>{});
    case PanelType::int8_32: return visit(GridOf<Int8Codes, 32>{});
    case PanelType::int8_64: return visit(GridOf<Int8Codes, 64>{});
    case PanelType::int8_128: return visit(GridOf<Int8Codes, 128>{});
    case PanelType::nf4_32: return visit(GridOf<TableCodes<Nf4>, 32>{});
    case PanelType::fp4_32: return visit(GridOf<TableCodes<Fp4>, 32>{});
    case PanelType::nf4_64: return visit(GridOf<TableCodes<Nf4>, 64>{});
    case PanelType::fp4_64: return visit(GridOf<TableCodes<Fp4>, 64>{});
    case PanelType::nf4_128: return visit(GridOf<TableCodes<Nf4>, 128>{});
    default: return visit(GridOf<TableCodes<Fp4>, 128>{});
  }
}

// The same of any type.
template <class Visit>
BITSMITH_INLINE auto with_type(PanelType type, const Visit &visit) {
  switch (type) {
    case PanelType::q4_0: return visit(Q4_0{});
    case PanelType::q4_1: return visit(Q4_1{});
    case PanelType::q5_0: return visit(Q5_0{});
    case PanelType::q5_1: return visit(Q5_1{});
    case PanelType::q8_0: return visit(Q8_0{});
    case PanelType::iq4_nl: return visit(IQ4_NL{});
    case PanelType::q2_k: return visit(Q2_K{});
    case PanelType::q3_k: return visit(Q3_K{});
    case PanelType::q4_k: return visit(Q4_K{});
    case PanelType::q5_k: return visit(Q5_K{});
    case PanelType::q6_k: return visit(Q6_K{});
    case PanelType::mxfp4: return visit(MXFP4{});
    case PanelType::nvfp4: return visit(NVFP4{});
    case PanelType::nvfp4_64: return visit(NVFP4_64{});
    case PanelType::q1_0: return visit(Q1_0{});
    case PanelType::q2_0: return visit(Q2_0{});
    case PanelType::tq1_0: return visit(TQ1_0{});
    case PanelType::tq2_0: return visit(TQ2_0{});
    case PanelType::iq1_s: return visit(IQ1_S{});
    case PanelType::iq1_m: return visit(IQ1_M{});
    case PanelType::iq2_xxs: return visit(IQ2_XXS{});
    case PanelType::iq2_xs: return visit(IQ2_XS{});
    case PanelType::iq2_s: return visit(IQ2_S{});
    case PanelType::iq3_xxs: return visit(IQ3_XXS{});
    case PanelType::iq3_s: return visit(IQ3_S{});
    case PanelType::iq4_xs: return visit(IQ4_XS{});
    default: return with_grid(type, visit);
  }
}

}  // namespace bitsmith::BITSMITH_ISA

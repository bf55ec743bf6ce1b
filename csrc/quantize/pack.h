// The bytes of one ggml block from its codes and parameters; the layouts of blocks_simple.py and blocks_k.py.
#pragma once

#include <cstring>

#include "fit.h"
#include "types.h"

namespace bitsmith::quantize::BITSMITH_ISA {

// Stored parameters of one group. d, m: float16 bits; scales, mins: integers, or scale bytes
struct Stored {
  uint16_t d = 0, m = 0;
  int8_t scales[16] = {};
  uint8_t mins[16] = {};
};

inline uint8_t *put(uint8_t *out, uint16_t value) {
  out[0] = static_cast<uint8_t>(value);
  out[1] = static_cast<uint8_t>(value >> 8);
  return out + 2;
}

// First half of each run of 2 * Half codes in the low nibbles.
template <int Half, int N>
uint8_t *put_nibbles(uint8_t *out, const uint8_t *code) {
  for (int run = 0; run < N; run += 2 * Half) {
    for (int i = 0; i < Half; ++i) {
      out[i] = static_cast<uint8_t>((code[run + i] & 15) | code[run + Half + i] << 4);
    }
    out += Half;
  }
  return out;
}

// Bits Shift, Shift + 1 of 256 codes: of each 128, run k of 32 in bits 2k and 2k + 1.
template <int Shift>
uint8_t *put_pairs(uint8_t *out, const uint8_t *code) {
  for (int half = 0; half < 256; half += 128) {
    const uint8_t *c = code + half;
    for (int i = 0; i < 32; ++i) {
      out[i] = static_cast<uint8_t>((c[i] >> Shift & 3) | (c[i + 32] >> Shift & 3) << 2 |
                                    (c[i + 64] >> Shift & 3) << 4 | (c[i + 96] >> Shift & 3) << 6);
    }
    out += 32;
  }
  return out;
}

// Bit Shift of 256 codes: bit k of byte j is weight 32 k + j.
template <int Shift>
uint8_t *put_bit_rows(uint8_t *out, const uint8_t *code) {
  for (int i = 0; i < 32; ++i) {
    int bits = 0;
    for (int k = 0; k < 8; ++k) bits |= (code[32 * k + i] >> Shift & 1) << k;
    out[i] = static_cast<uint8_t>(bits);
  }
  return out + 32;
}

// The fifth bits of 32 codes.
inline uint8_t *put_fifths(uint8_t *out, const uint8_t *code) {
  for (int byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (int k = 0; k < 8; ++k) bits |= (code[8 * byte + k] >> 4 & 1) << k;
    out[byte] = static_cast<uint8_t>(bits);
  }
  return out + 4;
}

// Eight scales and eight mins < 64 of Q4_K and Q5_K.
inline uint8_t *put_six_bits(uint8_t *out, const Stored &p) {
  const auto *scales = reinterpret_cast<const uint8_t *>(p.scales);
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<uint8_t>(scales[i] | scales[i + 4] >> 4 << 6);
    out[i + 4] = static_cast<uint8_t>(p.mins[i] | p.mins[i + 4] >> 4 << 6);
    out[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | (p.mins[i + 4] & 15) << 4);
  }
  return out + 12;
}

// Sixteen scales -32 .. 31 of Q3_K.
inline uint8_t *put_q3_scales(uint8_t *out, const Stored &p) {
  const auto scale = [&](int i) { return p.scales[i] + 32; };
  for (int i = 0; i < 8; ++i) out[i] = static_cast<uint8_t>((scale(i) & 15) | (scale(i + 8) & 15) << 4);
  for (int i = 0; i < 4; ++i) {
    out[i + 8] =
        static_cast<uint8_t>(scale(i) >> 4 | scale(i + 4) >> 4 << 2 | scale(i + 8) >> 4 << 4 | scale(i + 12) >> 4 << 6);
  }
  return out + 12;
}

// Eight scales -32 .. 31 of IQ4_XS: upper bits, then lower ones.
inline uint8_t *put_iq4_scales(uint8_t *out, const Stored &p) {
  int upper = 0;
  for (int i = 0; i < 8; ++i) upper |= ((p.scales[i] + 32) >> 4) << 2 * i;
  out = put(out, static_cast<uint16_t>(upper));
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<uint8_t>(((p.scales[2 * i] + 32) & 15) | ((p.scales[2 * i + 1] + 32) & 15) << 4);
  }
  return out + 4;
}

// Codes that count upwards from -6 to sign and magnitude.
template <int N>
void to_sign(uint8_t *code) {
  for (int i = 0; i < N; ++i) code[i] = static_cast<uint8_t>(code[i] < 8 ? 15 - code[i] : code[i] - 8);
}

// Five digits of base 3, the first of most weight, as a fraction of 256: the digit that is left is the upper byte of
// three times it.
inline uint8_t put_digits(const uint8_t *code, int step, int count) {
  int number = 0;
  for (int i = 0; i < 5; ++i) number = 3 * number + (i < count ? code[i * step] : 0);
  return static_cast<uint8_t>((number * 256 + 242) / 243);
}

// 256 codes below 3: 160 in 32 bytes, 80 in 16, 16 in 4.
inline uint8_t *put_threes(uint8_t *out, const uint8_t *code) {
  for (int i = 0; i < 32; ++i) *out++ = put_digits(code + i, 32, 5);
  for (int i = 0; i < 16; ++i) *out++ = put_digits(code + 160 + i, 16, 5);
  for (int i = 0; i < 4; ++i) *out++ = put_digits(code + 240 + i, 4, 4);
  return out;
}

// code: [group] bytes, spoilt
template <Type T>
void pack(uint8_t *out, uint8_t *code, const Stored &p) {
  if constexpr (T == Type::q8_0) {
    out = put(out, p.d);
    for (int i = 0; i < 32; ++i) out[i] = code[i] ^ 128;  // q8_0 stores code - 128
  } else if constexpr (T == Type::q4_0 || T == Type::iq4_nl) {
    put_nibbles<16, 32>(put(out, p.d), code);
  } else if constexpr (T == Type::q4_1) {
    put_nibbles<16, 32>(put(put(out, p.d), p.m), code);
  } else if constexpr (T == Type::q5_0) {
    put_nibbles<16, 32>(put_fifths(put(out, p.d), code), code);
  } else if constexpr (T == Type::q5_1) {
    put_nibbles<16, 32>(put_fifths(put(put(out, p.d), p.m), code), code);
  } else if constexpr (T == Type::mxfp4) {
    to_sign<32>(code);
    *out = static_cast<uint8_t>(p.scales[0]);
    put_nibbles<16, 32>(out + 1, code);
  } else if constexpr (T == Type::nvfp4) {
    to_sign<64>(code);
    std::memcpy(out, p.scales, 4);
    put_nibbles<8, 64>(out + 4, code);
  } else if constexpr (T == Type::q2_k) {
    for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>(p.scales[i] | p.mins[i] << 4);
    put(put(put_pairs<0>(out + 16, code), p.d), p.m);
  } else if constexpr (T == Type::q3_k) {
    put(put_q3_scales(put_pairs<0>(put_bit_rows<2>(out, code), code), p), p.d);
  } else if constexpr (T == Type::q4_k) {
    put_nibbles<32, 256>(put_six_bits(put(put(out, p.d), p.m), p), code);
  } else if constexpr (T == Type::q5_k) {
    put_nibbles<32, 256>(put_bit_rows<4>(put_six_bits(put(put(out, p.d), p.m), p), code), code);
  } else if constexpr (T == Type::q6_k) {
    out = put_pairs<4>(put_nibbles<64, 256>(out, code), code);
    std::memcpy(out, p.scales, 16);
    put(out + 16, p.d);
  } else if constexpr (T == Type::q1_0) {
    out = put(out, p.d);
    for (int byte = 0; byte < 16; ++byte) {
      int bits = 0;
      for (int i = 0; i < 8; ++i) bits |= code[8 * byte + i] << i;
      out[byte] = static_cast<uint8_t>(bits);
    }
  } else if constexpr (T == Type::q2_0) {
    out = put(out, p.d);
    for (int i = 0; i < 16; ++i) {
      const uint8_t *c = code + 4 * i;
      out[i] = static_cast<uint8_t>(c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6);
    }
  } else if constexpr (T == Type::tq1_0) {
    put(put_threes(out, code), p.d);
  } else if constexpr (T == Type::tq2_0) {
    put(put_pairs<0>(out, code), p.d);
  } else {
    static_assert(T == Type::iq4_xs);
    put_nibbles<16, 256>(put_iq4_scales(put(out, p.d), p), code);
  }
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

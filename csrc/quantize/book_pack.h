// The bytes of super-blocks of IQ1, IQ2 and IQ3, and the weights that codes stand for; the layouts of blocks_books.py.
#pragma once

#include <cstring>

#include "book_search.h"
#include "pack.h"

namespace bitsmith::quantize::BITSMITH_ISA {

inline uint8_t *put_word(uint8_t *out, uint32_t value) {
  for (int i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>(value >> (8 * i));
  return out + 4;
}

// The weights of two codes before the scale.
template <Book B>
class Levels {
 public:
  Levels() {
    for (int i = 0; i < 16; ++i) field_[i] = 16 / kBook.width * (i % 8), place_[i] = i % 8;
  }

  // Of weights at .. at + kLanes of 16. code: [2]; side: of IQ1_S
  Floats of(const int32_t *code, int side, int at) const {
    const int32_t first = code[at / 8];
    Ints codes = splat(first), point = splat(fields(first));
    if constexpr (kLanes == 16) {
      const Ints in_second = load<Ints>(second_);
      codes = in_second ? splat(code[1]) : codes;
      point = in_second ? splat(fields(code[1])) : point;
    }
    Floats level = look_up(kLevelTable<B>.of, point >> load<Ints>(field_ + at));
    if constexpr (kBook.shift == Shift::by_block) level += side ? -kShift : kShift;
    if constexpr (kBook.shift == Shift::by_code) level += (codes & 1 << kPoints) != 0 ? splat(-kShift) : splat(kShift);
    if constexpr (kBook.is_signed)
      level = as<Floats>(as<Ints>(level) ^ codes >> (load<Ints>(place_ + at) + kPoints) << 31);
    return level;
  }

 private:
  static constexpr BookFacts kBook = facts(B);
  static constexpr int kPoints = kBook.index_bits * kHalves<B>;

  static int32_t fields(int32_t code) {
    uint32_t fields = kBook.points[code & (kBook.count - 1)];
    if (kBook.width == 4)
      fields |= static_cast<uint32_t>(kBook.points[code >> kBook.index_bits & (kBook.count - 1)]) << 16;
    return static_cast<int32_t>(fields);
  }

  alignas(64) int32_t field_[16], place_[16], second_[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
};

// code: [32]; scales: [blocks]; shifts: [8]
template <Book B>
void pack_super(uint8_t *out, const int32_t *code, uint16_t d, const uint8_t *scales, const uint8_t *shifts) {
  constexpr BookFacts book = facts(B);
  constexpr int kMask = book.count - 1;
  const auto byte = [](int value) { return static_cast<uint8_t>(value); };
  const auto four_signs = [&](int run, int bits) {
    uint32_t signs = 0;
    for (int i = 0; i < 4; ++i) signs |= static_cast<uint32_t>(code[4 * run + i] >> bits & 127) << (7 * i);
    return signs | static_cast<uint32_t>(scales[run]) << 28;
  };
  const auto nibbles = [&](int count) {
    for (int i = 0; i < count; ++i) out[i] = byte(scales[2 * i] | scales[2 * i + 1] << 4);
  };
  if constexpr (B != Book::iq1_m) out = put(out, d);
  if constexpr (B == Book::iq2_xxs) {
    for (int run = 0; run < 8; ++run) {
      for (int i = 0; i < 4; ++i) *out++ = byte(code[4 * run + i] & 255);
      out = put_word(out, four_signs(run, 8));
    }
  } else if constexpr (B == Book::iq2_xs) {
    for (int i = 0; i < 32; ++i) out = put(out, static_cast<uint16_t>(code[i]));  // the eighth sign falls away
    nibbles(8);
  } else if constexpr (B == Book::iq2_s) {
    for (int i = 0; i < 32; ++i) out[i] = byte(code[i] & 255), out[32 + i] = byte(code[i] >> 10 & 255);
    out += 64;
    for (int run = 0; run < 8; ++run) {
      int high = 0;
      for (int i = 0; i < 4; ++i) high |= (code[4 * run + i] >> 8 & 3) << (2 * i);
      *out++ = byte(high);
    }
    nibbles(8);
  } else if constexpr (B == Book::iq3_xxs) {
    for (int i = 0; i < 32; ++i) *out++ = byte(code[i] & 255), *out++ = byte(code[i] >> 8 & 255);
    for (int run = 0; run < 8; ++run) out = put_word(out, four_signs(run, 16));
  } else if constexpr (B == Book::iq3_s) {
    for (int i = 0; i < 32; ++i) out[2 * i] = byte(code[i] & 255), out[2 * i + 1] = byte(code[i] >> 9 & 255);
    out += 64;
    for (int run = 0; run < 8; ++run) {
      int high = 0;
      for (int i = 0; i < 4; ++i) {
        const int c = code[4 * run + i];
        high |= (c >> 8 & 1) << (2 * i) | (c >> 17 & 1) << (2 * i + 1);
      }
      *out++ = byte(high);
    }
    for (int i = 0; i < 32; ++i) *out++ = byte(code[i] >> 18 & 255);
    nibbles(4);
  } else if constexpr (B == Book::iq1_s) {
    for (int i = 0; i < 32; ++i) *out++ = byte(code[i] & 255);
    for (int run = 0; run < 8; ++run) {
      int high = scales[run] << 12 | shifts[run] << 15;
      for (int i = 0; i < 4; ++i) high |= (code[4 * run + i] >> 8 & 7) << (3 * i);
      out = put(out, static_cast<uint16_t>(high));
    }
  } else {
    static_assert(B == Book::iq1_m);
    for (int i = 0; i < 32; ++i) *out++ = byte(code[i] & 255);
    for (int i = 0; i < 32; i += 2)  // three bits of a point, and the side
      *out++ = byte((code[i] & kMask) >> 8 | (code[i] >> 11 & 1) << 3 | (code[i + 1] & kMask) >> 8 << 4 |
                    (code[i + 1] >> 11 & 1) << 7);
    for (int i = 0; i < 4; ++i) {
      int word = (d >> (4 * i) & 15) << 12;
      for (int k = 0; k < 4; ++k) word |= scales[4 * i + k] << (3 * k);
      out = put(out, static_cast<uint16_t>(word));
    }
  }
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

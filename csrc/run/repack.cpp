// Codes of q3_k, q5_k and q6_k, and scales of nvfp4, packed anew for products.
//
// Files split each code into lower and upper bits in different words. Here most codes lie whole in a byte, and the bits
// that are left over hold the other codes: see `lifted` in types.h.
//
// A scale of nvfp4 is a byte of E4M3 without a sign, whose smallest values have no exponent. With five bits of exponent
// all have one, and the byte is the upper bits of a float: the scale's half (levels are doubled) times 2^-116.
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

using Codes = Words[8][8];  // [run, j]: of columns 32 run + 4 j ..

// As files have them: `dequantize_row_q3_K` and so on of llama.cpp.
BITSMITH_INLINE Words q3_k(const uint8_t *p, int run, int j) {
  const Words pair = word(p, 8 + 8 * (run / 4) + j) >> (2 * (run & 3)) & 0x03030303u;
  return pair | (word(p, j) >> run & 0x01010101u) << 2;
}

BITSMITH_INLINE Words q5_k(const uint8_t *p, int run, int j) {
  return nibbles(word(p, 12 + 8 * (run / 2) + j), run & 1) | (word(p, 4 + j) >> run & 0x01010101u) << 4;
}

BITSMITH_INLINE Words q6_k(const uint8_t *p, int run, int j) {
  const int half = run / 4, at = run & 3;
  const Words lower = nibbles(word(p, 16 * half + 8 * (at & 1) + j), at > 1), upper = word(p, 32 + 8 * half + j);
  return lower | (upper >> (2 * at) & 0x03030303u) << 4;
}

BITSMITH_INLINE void put(uint8_t *p, int index, Words v) { store(p + 64 * index, v); }

void put_q3_k(const Codes &c, uint8_t *p) {
  for (int j = 0; j < 8; ++j) {
    const Words six = c[6][j], seven = c[7][j];
    const Words shared = (six & 0x01010101u) << 6 | (seven & 0x01010101u) << 7;
    put(p, j, c[0][j] | c[3][j] << 3 | (six & 0x06060606u) << 5);
    put(p, 8 + j, c[1][j] | c[4][j] << 3 | shared);
    put(p, 16 + j, c[2][j] | c[5][j] << 3 | (seven & 0x06060606u) << 5);
  }
}

void put_q5_k(const Codes &c, uint8_t *p) {
  for (int j = 0; j < 8; ++j) {
    const Words five = c[5][j], six = c[6][j], seven = c[7][j];
    put(p, 4 + j, c[0][j] | (five & 0x1c1c1c1cu) << 3);
    put(p, 12 + j, c[1][j] | (five & 0x03030303u) << 6 | (seven & 0x02020202u) << 4);
    put(p, 20 + j, c[2][j] | (six & 0x1c1c1c1cu) << 3);
    put(p, 28 + j, c[3][j] | (six & 0x03030303u) << 6 | (seven & 0x01010101u) << 5);
    put(p, 36 + j, c[4][j] | (seven & 0x1c1c1c1cu) << 3);
  }
}

void put_q6_k(const Codes &c, uint8_t *p) {
  for (int at = 0; at < 16; ++at) {
    const int run = at / 8, j = at % 8;
    const Words spare = c[6 + run][j];
    put(p, at, c[run][j] | (spare & 0x30303030u) << 2);
    put(p, 16 + at, c[2 + run][j] | (spare & 0x0c0c0c0cu) << 4);
    put(p, 32 + at, c[4 + run][j] | (spare & 0x03030303u) << 6);
  }
}

template <class Get, class Put>
void each_block(int blocks, int words, uint8_t *panel, const Get &get, const Put &put) {
  for (int block = 0; block < blocks; ++block) {
    for (int lane = 0; lane < kPanelRows; lane += kLanes) {
      uint8_t *p = panel + static_cast<size_t>(block) * words * 64 + 4 * lane;
      Codes codes;
      for (int run = 0; run < 8; ++run)
        for (int j = 0; j < 8; ++j) codes[run][j] = get(p, run, j);
      put(codes, p);
    }
  }
}

struct ScaleTable {
  uint8_t bytes[256] = {};
  constexpr ScaleTable() {
    for (int i = 0; i < 256; ++i) {
      int exponent = (i >> 3 & 15) + 3, mantissa = i & 7;
      if (exponent > 3) {
        bytes[i] = static_cast<uint8_t>(exponent << 3 | mantissa);
      } else if (mantissa) {
        for (exponent = 4; mantissa < 8; --exponent) mantissa *= 2;
        bytes[i] = static_cast<uint8_t>(exponent << 3 | (mantissa & 7));
      }
    }
    bytes[0x7f] = 0;  // as ggml reads it
  }
};
constexpr ScaleTable kScales;

// index: the word of a block that holds the scales
void put_scales(int blocks, int words, int index, uint8_t *panel) {
  for (int block = 0; block < blocks; ++block) {
    uint8_t *p = panel + (static_cast<size_t>(block) * words + index) * 64;
    for (int i = 0; i < 64; ++i) p[i] = kScales.bytes[p[i]];
  }
}

}  // namespace

void repack(PanelType type, int blocks, uint8_t *panel) {
  const int words = layout_of(type).words;
  switch (type) {
    case PanelType::q3_k: return each_block(blocks, words, panel, q3_k, put_q3_k);
    case PanelType::q5_k: return each_block(blocks, words, panel, q5_k, put_q5_k);
    case PanelType::q6_k: return each_block(blocks, words, panel, q6_k, put_q6_k);
    case PanelType::nvfp4: return put_scales(blocks, words, 0, panel);
    case PanelType::nvfp4_64: return put_scales(blocks, words, 1, panel);
    default: return;
  }
}

}  // namespace bitsmith::BITSMITH_ISA

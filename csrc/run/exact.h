// Panels as float32, for products that round nothing: their codes are turned to floats in registers.
#pragma once

#include "dot.h"
#include "products.h"
#include "types.h"

namespace bitsmith::BITSMITH_ISA {

constexpr int kExactGroups = kPanelRows / kLanes;  // vectors that hold a value of each row of a panel

// Byte `byte` of each word, less what was added to codes.
template <class T>
BITSMITH_INLINE Floats level_of(Words codes, int byte) {
  constexpr float kMagic = 8388608.0f;  // 2^23: the low bits of its mantissa are an integer
  constexpr float kAdded = T::kZero < 0 ? 0 : 1 << T::kZero;
  return as<Floats>((codes >> (8 * byte) & 255u) | 0x4b000000u) - (kMagic + kAdded);
}

// Calls visit(column, level) for the columns from 4 * first up to 4 * last of a run of 32. A weight is its level times
// `scale_in`, less `low_in`. Tables: for all of the run, whatever `first` and `last`.
template <class T, class Visit>
BITSMITH_INLINE void each_level(const uint8_t *p, int run, int first, int last, const Visit &visit) {
  if constexpr (T::kTable) {
#pragma GCC unroll kUnrolled
    for (int i = 0; i < 4; ++i) {
      const Words entries = T::entries(p, run, i);
#pragma GCC unroll kUnrolled
      for (int n = 0; n < 8; ++n)
        visit(16 * (n & 1) + 4 * i + n / 2, look_up(T::Table::kValues, as<Ints>(entries >> (4 * n))));
    }
  } else {
#pragma GCC unroll kUnrolled
    for (int j = first; j < last; ++j) {
      const Words word = codes<T>(p, run, j);
#pragma GCC unroll kUnrolled
      for (int byte = 0; byte < 4; ++byte) visit(4 * j + byte, level_of<T>(word, byte));
    }
  }
}

// The scale of a block, before those of its sub-blocks.
template <class T>
BITSMITH_INLINE Floats block_scale(const uint8_t *p, const uint8_t *half) {
  if constexpr (T::kTable)
    return T::scale(p);
  else
    return T::d(p, half);
}

// Of a sub-block of a block, whose dmin this is.
template <class T>
BITSMITH_INLINE Floats low_in(const uint8_t *p, Floats dmin, int sub) {
  if constexpr (kScaled<T>)
    return dmin * convert<Floats>(min_of<T>(p, sub));
  else
    return dmin;
}

// Where a block of kLanes rows of a panel lies.
struct BlockAt {
  const uint8_t *words, *half;
};

template <class T>
BITSMITH_INLINE BlockAt block_at(const PanelRows &w, int panel, int block, int group) {
  constexpr BlockLayout layout = layout_of(T::kType);
  const uint8_t *base = w.data + panel * w.panel_bytes();
  const uint8_t *halves = base + static_cast<size_t>(w.blocks()) * layout.words * 64;
  return {base + static_cast<size_t>(block) * layout.words * 64 + 4 * kLanes * group,
          halves + static_cast<size_t>(block) * 2 * kPanelRows + 2 * kLanes * group};
}

// Whole blocks of a panel from column `col` on: to[cols, 16].
template <class T>
void decode_blocks(const PanelRows &w, int panel, int col, int cols, float *to) {
  constexpr int kWeights = layout_of(T::kType).weights, kSubs = 32 / T::kSub;
  for (int at = 0; at < cols / kWeights; ++at) {
    for (int group = 0; group < kExactGroups; ++group) {
      const BlockAt block = block_at<T>(w, panel, col / kWeights + at, group);
      const Floats d = block_scale<T>(block.words, block.half);
      Floats dmin{};
      if constexpr (T::kAffine) dmin = T::dmin(block.words);
      for (int run = 0; run < kWeights / 32; ++run) {
        float *out = to + static_cast<size_t>(at * kWeights + 32 * run) * kPanelRows + kLanes * group;
        for (int part = 0; part < kSubs; ++part) {
          const int sub = run * kSubs + part;
          const Floats scale = scale_in<T>(block.words, d, sub);
          Floats low{};
          if constexpr (T::kAffine) low = low_in<T>(block.words, dmin, sub);
          each_level<T>(block.words, run, part * 8 / kSubs, (part + 1) * 8 / kSubs,
                        [&](int column, Floats level) BITSMITH_INLINE_LAMBDA {
                          Floats value = level * scale;
                          if constexpr (T::kAffine) value -= low;
                          store(out + column * kPanelRows, value);
                        });
        }
      }
    }
  }
}

}  // namespace bitsmith::BITSMITH_ISA

// Rules that take a target to the nearest level of a table; `Levels` of fit.py and `Grid.nearest` of grid.py.
//
// round: the level itself, for the search (halves to even on integers, down on tables)
// code: its index, for what is stored (halves down); level: back again
#pragma once

#include "lanes.h"

namespace bitsmith::quantize::BITSMITH_ISA {

// The integers Low .. High.
template <int Low, int High>
struct Integers {
  static LANES_INLINE Floats round(Floats t) { return clip(rint(t), Low, High); }

  static LANES_INLINE Ints code(Floats t) {
    const Floats bounded = clip(t, Low, High), rounded = rint(bounded);
    return __builtin_convertvector(rounded - static_cast<float>(Low), Ints) + (rounded - bounded == 0.5f);
  }

  static LANES_INLINE Floats level(Ints code) {
    return __builtin_convertvector(code, Floats) + static_cast<float>(Low);
  }
};

// Sixteen ascending levels.
template <class Table>
struct Tabled {
  static constexpr float middle(int i) { return (Table::level[i] + Table::level[i + 1]) * 0.5f; }

  static LANES_INLINE Floats round(Floats t) {
    if constexpr (kLanes == 16 && Table::kCells) return by_cell(t);
    Floats found = splat(Table::level[0]);
    for (int i = 0; i < 15; ++i) {
      const Floats step = splat(Table::level[i + 1] - Table::level[i]);
      found += bits_to_floats((t > splat(middle(i))) & floats_to_bits(step));
    }
    return found;
  }

  static LANES_INLINE Ints code(Floats t) {
    Ints found{};
    for (int i = 0; i < 15; ++i) found -= t > splat(middle(i));
    return found;
  }

  static LANES_INLINE Floats level(Ints code) {
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(code), load(Table::level));
#else
    Floats found;
    for (int i = 0; i < kLanes; ++i) found[i] = Table::level[code[i] & 15];
    return found;
#endif
  }

 private:
  // Cells of eight from -128 hold at most one middle each: its place, and the levels on both sides. A target that is
  // rounded into the neighbouring cell meets the same level there; the one middle on a border, -16, opens its cell.
  struct Cells {
    alignas(64) float middle[32], below[32], above[32];
    constexpr Cells() : middle(), below(), above() {
      int next = 0;
      for (int cell = 0; cell < 32; ++cell) {
        const bool split = next < 15 && Tabled::middle(next) < static_cast<float>(8 * cell - 120);
        middle[cell] = split ? Tabled::middle(next) : 1e30f;
        below[cell] = Table::level[next];
        next += split;
        above[cell] = Table::level[next];
      }
    }
  };

  static LANES_INLINE Floats by_cell([[maybe_unused]] Floats t) {
#if defined(__AVX512F__)
    static constexpr Cells cells;
    const Floats bounded = clip(t, -128.0f, 127.0f);
    const __m512i cell = _mm512_cvttps_epi32((bounded + 128.0f) * 0.125f);
    const auto find = [&](const float *table) { return _mm512_permutex2var_ps(load(table), cell, load(table + 16)); };
    return bounded > find(cells.middle) ? find(cells.above) : find(cells.below);
#else
    return t;
#endif
  }
};

struct Iq4Table {
  static constexpr bool kCells = true;
  alignas(64) static constexpr float level[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                  1,    13,   25,  38,  53,  69,  89,  113};
};

// Twice the E2M1 values; the first of the zeros is -0 in the file.
struct E2m1Table {
  static constexpr bool kCells = false;
  alignas(64) static constexpr float level[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12};
};

using Iq4 = Tabled<Iq4Table>;
using E2m1 = Tabled<E2m1Table>;

}  // namespace bitsmith::quantize::BITSMITH_ISA

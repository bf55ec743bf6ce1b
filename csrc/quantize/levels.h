// Rules that take a target to the nearest level of a table; `Levels` of scale_search.py and `Grid.nearest` of grid.py.
//
// round: the level itself, for the search (halves to even on integers, down on tables)
// code: its index, for what is stored (halves down); level: back again
#pragma once

#include "fit.h"

namespace bitsmith::quantize::BITSMITH_ISA {

// The integers Low .. High.
template <int Low, int High>
struct Integers {
  static BITSMITH_INLINE Floats round(Floats t) { return clip(rint(t), Low, High); }

  static BITSMITH_INLINE Ints code(Floats t) {
    const Floats bounded = clip(t, Low, High), rounded = rint(bounded);
    return convert<Ints>(rounded - static_cast<float>(Low)) + (rounded - bounded == 0.5f);
  }

  static BITSMITH_INLINE Floats level(Ints code) { return convert<Floats>(code) + static_cast<float>(Low); }
};

// -1 and 1
struct Signs {
  static BITSMITH_INLINE Floats round(Floats t) { return t > 0.0f ? splat(1.0f) : splat(-1.0f); }
  static BITSMITH_INLINE Ints code(Floats t) { return -(t > 0.0f); }
  static BITSMITH_INLINE Floats level(Ints code) { return convert<Floats>(2 * code - 1); }
};

// Sixteen ascending levels.
template <class Table>
struct Tabled {
  static constexpr float middle(int i) { return (Table::level[i] + Table::level[i + 1]) * 0.5f; }

  static BITSMITH_INLINE Floats round(Floats t) {
    if constexpr (kLanes == 16 && Table::kCells) return by_cell(t);
    Floats found = splat(Table::level[0]);
    for (int i = 0; i < 15; ++i) {
      const Floats step = splat(Table::level[i + 1] - Table::level[i]);
      found += as<Floats>((t > splat(middle(i))) & as<Ints>(step));
    }
    return found;
  }

  static BITSMITH_INLINE Ints code(Floats t) {
    Ints found{};
    for (int i = 0; i < 15; ++i) found -= t > splat(middle(i));
    return found;
  }

  static BITSMITH_INLINE Floats level(Ints code) { return look_up(Table::level, code); }

 private:
  // The range from -128 is cut into cells of width 8. No cell holds more than one middle between levels. For each cell:
  // its middle, and the levels below and above it. A target that is rounded into the next cell meets the same level
  // there. One middle, -16, lies on the border of two cells; it belongs to the upper one.
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

  static BITSMITH_INLINE Floats by_cell(Floats t) {
    static constexpr Cells cells;
    const Floats bounded = clip(t, -128.0f, 127.0f);
    const Ints cell = convert<Ints>((bounded + 128.0f) * 0.125f);
    const Ints above = bounded > look_up(cells.middle, cell);
    return above ? look_up(cells.above, cell) : look_up(cells.below, cell);
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

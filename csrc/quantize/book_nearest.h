// The nearest point of a code book for one vector of weights at a given scale: all points are tried.
//
// A vector x with weights w, coded by the levels g at scale s, loses sum w x^2 + s (s norm - 2 cross), where
// norm = sum w g^2 and cross = sum w x g. Both are sums over four tables of 16 entries, which the fields of a point
// index. Results equal `nearest_codes` of quant/book_search.py to the bit, ties included.
#pragma once

#include <vector>

#include "book_scan.h"

namespace bitsmith::quantize::BITSMITH_ISA {

// Entries for the four fields of a point.
struct Tables {
  alignas(64) float of[4][16];
};

// Combine(a, b) of two levels' terms fills the entries of fields that stand for two weights.
template <Book B, class Term, class Combine>
void fill(Tables &tables, const Term &term, const Combine &combine) {
  constexpr BookFacts book = facts(B);
  for (int part = 0; part < 4; ++part) {
    for (int field = 0; field < 16; ++field) {
      if constexpr (book.width == 8)
        tables.of[part][field] = combine(term(2 * part, field & 3), term(2 * part + 1, field >> 2));
      else
        tables.of[part][field] = term(part, field & 7);
    }
  }
}

struct Sum {
  float operator()(float a, float b) const { return a + b; }
};
struct Least {
  float operator()(float a, float b) const { return a < b ? a : b; }
};

BITSMITH_INLINE Floats sum_of(const Tables &t, Ints point) {
  return (look_up(t.of[0], point) + look_up(t.of[1], point >> 4)) +
         (look_up(t.of[2], point >> 8) + look_up(t.of[3], point >> 12));
}

BITSMITH_INLINE Floats least_of(const Tables &t, Ints point) {
  return min(min(look_up(t.of[0], point), look_up(t.of[1], point >> 4)),
             min(look_up(t.of[2], point >> 8), look_up(t.of[3], point >> 12)));
}

BITSMITH_INLINE Ints points_at(const uint16_t *points) { return convert<Ints>(load<Halves>(points)); }

// One set of points to choose from. flip: what the sign of one weight costs, at least; null: no sign flips
// tag: added to the number of a point
struct Choices {
  const Tables *cross, *flip;
  const float *norms;  // [count]
  int tag;
};

struct Found {
  float value = 0, cross = 0, norm = 0;
  int code = 0;
};

template <Book B>
BITSMITH_INLINE Floats cross_at(const Choices &choices, Ints point) {
  Floats cross = sum_of(*choices.cross, point);
  if (choices.flip) cross -= 2.0f * least_of(*choices.flip, point);
  return cross;
}

BITSMITH_INLINE Floats value_at(Floats cross, Floats norm, Floats scale) {
  return scale * (scale * norm - (cross + cross));
}

BITSMITH_INLINE Ints lane_numbers() {
  Ints lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// The lane with the smallest value; of equals the one with the smallest number.
BITSMITH_INLINE int best_lane(Floats value, Ints number) {
#if defined(__AVX512F__)
  const __mmask16 least = _mm512_cmpeq_ps_mask(value, _mm512_set1_ps(_mm512_reduce_min_ps(value)));
  if ((least & (least - 1)) == 0) return __builtin_ctz(least | 1u << 16);
  const __m512i numbers = as<__m512i>(number);
  const int first = _mm512_mask_reduce_min_epi32(least, numbers);
  return __builtin_ctz(_mm512_mask_cmpeq_epi32_mask(least, numbers, _mm512_set1_epi32(first)));
#else
  int best = 0;
  for (int i = 1; i < kLanes; ++i)
    if (value[i] < value[best] || (value[i] == value[best] && number[i] < number[best])) best = i;
  return best;
#endif
}

// The best point at a scale, of all.
template <Book B>
Found best_of_all(const Choices *choices, int many, float scale) {
  constexpr BookFacts book = facts(B);
  const Floats s = splat(scale);
  Found found;
  for (int c = 0; c < many; ++c) {
    Floats best = splat(__builtin_inff()), best_cross{}, best_norm{};
    Ints best_at{};
    const Ints lanes = lane_numbers();
    for (int i = 0; i < book.count; i += kLanes) {
      const Floats cross = cross_at<B>(choices[c], points_at(book.points + i)),
                   norm = load<Floats>(choices[c].norms + i);
      const Floats value = value_at(cross, norm, s);
      const Ints better = value < best;
      best = better ? value : best;
      best_cross = better ? cross : best_cross;
      best_norm = better ? norm : best_norm;
      best_at = better ? lanes + i : best_at;
    }
    const int lane = best_lane(best, best_at);
    if (c == 0 || best[lane] < found.value)
      found = {best[lane], best_cross[lane], best_norm[lane], best_at[lane] + choices[c].tag};
  }
  return found;
}

// Squared levels of the points, weighted by the columns of a vector.
template <Book B>
class Norms {
 public:
  Norms() : values_(static_cast<size_t>(kHalves<B>) * kSides<B> * facts(B).count) { set(nullptr); }

  // columns: [8]; null: all 1
  void set(const float *columns) {
    for (int half = 0; half < kHalves<B>; ++half)
      for (int side = 0; side < kSides<B>; ++side) {
        float weight[8];
        for (int i = 0; i < facts(B).width; ++i) weight[i] = columns ? columns[half * facts(B).width + i] : 1.0f;
        one(weight, side, values_.data() + index(half, side));
      }
  }

  const float *of(int half, int side) const { return values_.data() + index(half, side); }

 private:
  static size_t index(int half, int side) { return static_cast<size_t>(half * kSides<B> + side) * facts(B).count; }

  static void one(const float *weight, int side, float *to) {
    constexpr BookFacts book = facts(B);
    Tables tables;
    fill<B>(
        tables,
        [&](int i, int field) {
          const float level = level_of<B>(field, side);
          return weight[i] * (level * level);
        },
        Sum{});
    for (int i = 0; i < book.count; i += kLanes) store(to + i, sum_of(tables, points_at(book.points + i)));
  }

 public:
  template <Book>
  static float level_of(int field, int side) {
    constexpr BookFacts book = facts(B);
    const float level = book.levels[field];
    if constexpr (book.shift != Shift::none) return level + (side ? -kShift : kShift);
    return level;
  }

 private:
  std::vector<float> values_;
};

// One vector of eight weights and its tables.
template <Book B>
struct Vector {
  static constexpr BookFacts kBook = facts(B);
  static constexpr bool kPaired = kBook.even && kBook.width == 4;  // signs of two points are even together

  Tables cross[kHalves<B>][kSides<B>], flip[kHalves<B>];
  uint8_t signs = 0;
  bool odd = false;
  Choices choices[2][2];  // [half or side][flipped or, of codes, shifted]

  // x: [8]; weight: [8] or null
  void set(const float *x, const float *weight, const Norms<B> &norms) {
    signs = 0;
    for (int half = 0; half < kHalves<B>; ++half) {
      float product[8];
      for (int i = 0; i < kBook.width; ++i) {
        const int at = half * kBook.width + i;
        float size = x[at];
        if (kBook.is_signed && size < 0) {
          signs |= static_cast<uint8_t>(1 << at);
          size = -size;
        }
        product[i] = weight ? size * weight[at] : size;
      }
      for (int side = 0; side < kSides<B>; ++side)
        fill<B>(
            cross[half][side],
            [&](int i, int field) { return product[i] * Norms<B>::template level_of<B>(field, side); }, Sum{});
      if constexpr (kBook.even)
        fill<B>(flip[half], [&](int i, int field) { return product[i] * kBook.levels[field]; }, Least{});
    }
    odd = kBook.even && (__builtin_popcount(signs) & 1);
    choose(norms);
  }

  // The best code at a scale. side: of levels, in IQ1_S
  Found best(float scale, int side = 0) const {
    if constexpr (kBook.width == 8) return best_of_all<B>(choices[side] + 0, kMany, scale);
    const Found a = best_of_all<B>(choices[0] + 0, kMany, scale), b = best_of_all<B>(choices[1] + 0, kMany, scale);
    if constexpr (kPaired) {
      if (odd) {
        const Found flipped_a = best_of_all<B>(choices[0] + 1, kMany, scale),
                    flipped_b = best_of_all<B>(choices[1] + 1, kMany, scale);
        const Found first = both(flipped_a, b, 1 << 24), second = both(a, flipped_b, 2 << 24);
        return second.value < first.value ? second : first;
      }
    }
    return both(a, b, 0);
  }

  // What is stored: the points, and the signs.
  int32_t code(const Found &found) const {
    if constexpr (!kBook.is_signed) return found.code;
    constexpr int kPoints = kBook.index_bits * kHalves<B>;
    int bits = signs;
    if (odd) {
      const int half = kPaired ? (found.code >> 24) - 1 : 0;
      const int point = kBook.points[found.code >> (half * kBook.index_bits) & ((1 << kBook.index_bits) - 1)];
      bits ^= 1 << (half * kBook.width + cheapest(half, point));
    }
    return (found.code & ((1 << kPoints) - 1)) | bits << kPoints;
  }

 private:
  static constexpr int kMany = kBook.shift == Shift::by_code ? 2 : 1;

  void choose(const Norms<B> &norms) {
    if constexpr (kBook.width == 4) {
      for (int half = 0; half < 2; ++half)
        for (int flipped = 0; flipped < 2; ++flipped)
          choices[half][flipped] = {&cross[half][0], flipped ? &flip[half] : nullptr, norms.of(half, 0), 0};
    } else if constexpr (kBook.shift == Shift::none) {
      choices[0][0] = {&cross[0][0], odd ? &flip[0] : nullptr, norms.of(0, 0), 0};
    } else {
      constexpr bool kOfCode = kBook.shift == Shift::by_code;
      for (int side = 0; side < 2; ++side)
        choices[kOfCode ? 0 : side][kOfCode ? side : 0] = {&cross[0][side], nullptr, norms.of(0, side),
                                                           kOfCode ? side * kBook.count : 0};
    }
  }

  static Found both(const Found &a, const Found &b, int tag) {
    return {a.value + b.value, a.cross + b.cross, a.norm + b.norm, a.code | b.code << kBook.index_bits | tag};
  }

  // The weight whose sign costs least to flip.
  int cheapest(int half, int point) const {
    int best = 0;
    float least = __builtin_inff();
    for (int i = 0; i < kBook.width; ++i) {
      const float cost = term(half, i, point);
      if (cost < least) {
        least = cost;
        best = i;
      }
    }
    return best;
  }

  float term(int half, int i, int point) const {
    return sizes[half * kBook.width + i] * kBook.levels[kBook.width == 8 ? point >> (2 * i) & 3 : point >> (4 * i) & 7];
  }

 public:
  float sizes[8] = {};  // of weights, times their columns' weights; of even books
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

// The nearest point of a code book for one vector of weights, at any scale.
//
// A vector x with weights w, coded by the levels g at scale s, loses sum w x^2 + s (s norm - 2 cross), where
// norm = sum w g^2 and cross = sum w x g. Both are sums over four tables of 16 entries, which the fields of a point
// index. Over u = 1 / s the loss divided by s^2 is a line, norm - 2 u cross. A `Curve` keeps the points whose lines can
// be the lowest one within a range of scales, so that many scales are tried in few steps. It drops no point that could
// win, ties included.
#pragma once

#include <cmath>
#include <vector>

#include "books.h"
#include "fit.h"

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

// One set of points that a curve chooses from. flip: what the sign of one weight costs, at least; null: no sign flips
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

// Where the candidates of all curves of a super-block lie, one curve behind the other.
class Arena {
 public:
  explicit Arena(size_t most) : cross_(most), norm_(most), code_(most) {}
  void clear() { used_ = 0; }

  // Room for up to `count` entries behind those used.
  float *cross() { return cross_.data() + used_; }
  float *norm() { return norm_.data() + used_; }
  int32_t *code() { return code_.data() + used_; }
  void take(int count) { used_ += count; }

 private:
  std::vector<float> cross_, norm_;
  std::vector<int32_t> code_;
  size_t used_ = 0;
};

// Candidates for the scales low .. high; for others all points are tried.
struct Curve {
  const float *cross = nullptr, *norm = nullptr;
  const int32_t *code = nullptr;
  int size = 0;  // a multiple of kLanes: entries behind the last have an infinite norm
  float low = 1, high = 0;
  Choices choices[2];
  int many = 0;
};

template <Book B>
BITSMITH_INLINE Found best_at(const Curve &curve, float scale) {
  if (!(scale >= curve.low && scale <= curve.high)) return best_of_all<B>(curve.choices, curve.many, scale);
  const Floats s = splat(scale);
  Floats best_cross = load<Floats>(curve.cross), best_norm = load<Floats>(curve.norm);
  Floats best = value_at(best_cross, best_norm, s);
  Ints code = load<Ints>(curve.code);
  for (int i = kLanes; i < curve.size; i += kLanes) {
    const Floats cross = load<Floats>(curve.cross + i), norm = load<Floats>(curve.norm + i);
    const Floats value = value_at(cross, norm, s);
    const Ints better = value < best;
    best = better ? value : best;
    best_cross = better ? cross : best_cross;
    best_norm = better ? norm : best_norm;
    code = better ? load<Ints>(curve.code + i) : code;
  }
  const int lane = best_lane(best, code);
  return {best[lane], best_cross[lane], best_norm[lane], code[lane]};
}

BITSMITH_INLINE float smallest(Floats v) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_ps(v);
#else
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] < best ? v[i] : best;
  return best;
#endif
}

// What the best point loses at a scale; the value of `best_at`, in fewer steps.
template <Book B>
BITSMITH_INLINE float least_at(const Curve &curve, float scale) {
  if (!(scale >= curve.low && scale <= curve.high)) return best_of_all<B>(curve.choices, curve.many, scale).value;
  const Floats s = splat(scale);
  Floats best = value_at(load<Floats>(curve.cross), load<Floats>(curve.norm), s);
  for (int i = kLanes; i < curve.size; i += kLanes)
    best = min(value_at(load<Floats>(curve.cross + i), load<Floats>(curve.norm + i), s), best);
  return smallest(best);
}

// A line over u = 1 / s: norm - 2 u cross.
struct Line {
  float value = __builtin_inff(), cross = 0, norm = 0;
};

// Where two lines meet between two places, and a bound for those that pass below both.
struct Meeting {
  float twice_u, bound;

  static Meeting of(const Line &a, const Line &b, float from, float to) {
    const float apart = b.cross - a.cross;
    float u = apart != 0 ? (b.norm - a.norm) / (2 * apart) : from;
    if (!(u >= from && u <= to)) u = u > to ? to : from;
    const float at_a = a.norm - 2 * u * a.cross, at_b = b.norm - 2 * u * b.cross;
    const float size = std::fabs(a.norm) + std::fabs(b.norm) + 2 * u * (std::fabs(a.cross) + std::fabs(b.cross));
    return {2 * u, (at_a < at_b ? at_a : at_b) + 1e-5f * size};
  }
};

// Entries of the lanes that `keep` names, behind `count` others. Returns the new count.
BITSMITH_INLINE int append(Ints keep, Floats cross, Floats norm, Ints code, Arena &to, int count) {
#if defined(__AVX512F__)
  const __mmask16 lanes = _mm512_movepi32_mask(as<__m512i>(keep));
  if (!lanes) return count;
  _mm512_storeu_ps(to.cross() + count, _mm512_maskz_compress_ps(lanes, cross));
  _mm512_storeu_ps(to.norm() + count, _mm512_maskz_compress_ps(lanes, norm));
  _mm512_storeu_si512(to.code() + count, _mm512_maskz_compress_epi32(lanes, as<__m512i>(code)));
  return count + __builtin_popcount(lanes);
#else
  for (int i = 0; i < kLanes; ++i) {
    if (!keep[i]) continue;
    to.cross()[count] = cross[i];
    to.norm()[count] = norm[i];
    to.code()[count] = code[i];
    ++count;
  }
  return count;
#endif
}

// Chooses the candidates of a curve for the scales low .. high. buffer: [points of all choices] floats
template <Book B>
void trace(Curve &curve, float low, float high, Arena &arena, float *buffer) {
  constexpr BookFacts book = facts(B);
  constexpr int kPlaces = 3;
  const float u[kPlaces] = {1.0f / high, 1.0f / std::sqrt(low * high), 1.0f / low};
  Line lines[kPlaces];
  for (int c = 0; c < curve.many; ++c) {
    Floats best[kPlaces], twice[kPlaces];
    Ints at[kPlaces] = {};
    for (int k = 0; k < kPlaces; ++k) best[k] = splat(__builtin_inff()), twice[k] = splat(2 * u[k]);
    const Choices &choices = curve.choices[c];
    float *crosses = buffer + c * book.count;
    for (int i = 0; i < book.count; i += kLanes) {
      const Floats cross = cross_at<B>(choices, points_at(book.points + i)), norm = load<Floats>(choices.norms + i);
      store(crosses + i, cross);
      for (int k = 0; k < kPlaces; ++k) {
        const Floats value = norm - twice[k] * cross;
        const Ints better = value < best[k];
        best[k] = better ? value : best[k];
        at[k] = better ? splat(i) : at[k];
      }
    }
    for (int k = 0; k < kPlaces; ++k) {
      const int lane = best_lane(best[k], at[k]), index = at[k][lane] + lane;
      if (best[k][lane] < lines[k].value) lines[k] = {best[k][lane], crosses[index], choices.norms[index]};
    }
  }
  const Meeting first = Meeting::of(lines[0], lines[1], u[0], u[1]),
                second = Meeting::of(lines[1], lines[2], u[1], u[2]);
  const Floats first_u = splat(first.twice_u), second_u = splat(second.twice_u);
  int count = 0;
  const Ints lanes = lane_numbers();
  for (int c = 0; c < curve.many; ++c) {
    const Choices &choices = curve.choices[c];
    for (int i = 0; i < book.count; i += kLanes) {
      const Floats cross = load<Floats>(buffer + c * book.count + i), norm = load<Floats>(choices.norms + i);
      const Ints keep = (norm - first_u * cross <= first.bound) | (norm - second_u * cross <= second.bound);
      count = append(keep, cross, norm, lanes + (i + choices.tag), arena, count);
    }
  }
  curve.cross = arena.cross();
  curve.norm = arena.norm();
  curve.code = arena.code();
  while (count == 0 || count % kLanes) {
    arena.cross()[count] = 0;
    arena.norm()[count] = __builtin_inff();
    arena.code()[count] = INT32_MAX;
    ++count;
  }
  arena.take(count);
  curve.size = count;
  curve.low = low;
  curve.high = high;
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

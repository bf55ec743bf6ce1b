// Scales and codes of super-blocks of IQ1, IQ2 and IQ3; `CodeBookFormat` of quant/formats/code_books.py.
#pragma once

#include <algorithm>

#include "book_curves.h"

namespace bitsmith::quantize::BITSMITH_ISA {

constexpr int kTrials = 8;     // scales tried for a block
constexpr float kLow = 0.62f;  // the first and the last of them, as shares of what the block's norm suggests
constexpr float kHigh = 1.75f;
constexpr float kStep = 1.15f;                                         // from each to the next
constexpr float kShares[] = {0.86f, 0.92f, 0.96f, 1.0f, 1.04f, 1.1f};  // of the largest scale: tried for d
constexpr int kRounds = 2;                                             // of descent and refits
constexpr int kReach = 2;

template <Book B>
constexpr int kHalves = 8 / facts(B).width;
template <Book B>
constexpr int kSides = facts(B).shift == Shift::none ? 1 : 2;  // levels are shifted to either side
template <Book B>
constexpr int kBlocks = kSuper / facts(B).block;
template <Book B>
constexpr int kInBlock = facts(B).block / kVector;

// Squared levels of the points, weighted by the columns of a super-block.
template <Book B>
class Norms {
 public:
  Norms() : values_(static_cast<size_t>(kVectors) * kHalves<B> * kSides<B> * facts(B).count) {}

  // columns: [256]; null: all 1
  void set(const float *columns) {
    alone_ = columns == nullptr;
    for (int vector = 0; vector < (alone_ ? 1 : kVectors); ++vector)
      for (int half = 0; half < kHalves<B>; ++half)
        for (int side = 0; side < kSides<B>; ++side) {
          float weight[8];
          for (int i = 0; i < facts(B).width; ++i)
            weight[i] = columns ? columns[vector * kVector + half * facts(B).width + i] : 1.0f;
          one(weight, side, place(vector, half, side));
        }
  }

  // For one vector. columns: [8]
  void set_one(const float *columns) {
    alone_ = true;
    for (int half = 0; half < kHalves<B>; ++half)
      for (int side = 0; side < kSides<B>; ++side) one(columns + half * facts(B).width, side, place(0, half, side));
  }

  const float *of(int vector, int half, int side) const {
    return values_.data() + index(alone_ ? 0 : vector, half, side);
  }

 private:
  static size_t index(int vector, int half, int side) {
    return (static_cast<size_t>(vector * kHalves<B> + half) * kSides<B> + side) * facts(B).count;
  }
  float *place(int vector, int half, int side) { return values_.data() + index(vector, half, side); }

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
  bool alone_ = true;
};

// One vector of eight weights: its tables and its curves.
template <Book B>
struct Vector {
  static constexpr BookFacts kBook = facts(B);
  static constexpr bool kPaired = kBook.even && kBook.width == 4;  // signs of two points are even together

  Tables cross[kHalves<B>][kSides<B>], flip[kHalves<B>];
  uint8_t signs = 0;
  bool odd = false;
  Curve curves[2][2];  // [half or side][flipped]

  // x: [8]; weight: [8] or null. vector: number of the vector in its super-block
  void set(const float *x, const float *weight, const Norms<B> &norms, int vector) {
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
    choose(norms, vector);
  }

  // The best code at a scale. side: of levels, in IQ1_S
  Found best(float scale, int side = 0) const {
    if constexpr (kBook.width == 8) return best_at<B>(curves[side][0], scale);
    const Found a = best_at<B>(curves[0][0], scale), b = best_at<B>(curves[1][0], scale);
    if constexpr (kPaired) {
      if (odd) {
        const Found flipped_a = best_at<B>(curves[0][1], scale), flipped_b = best_at<B>(curves[1][1], scale);
        const Found first = both(flipped_a, b, 1 << 24), second = both(a, flipped_b, 2 << 24);
        return second.value < first.value ? second : first;
      }
    }
    return both(a, b, 0);
  }

  // What it loses, less a constant.
  float least(float scale, int side = 0) const {
    if constexpr (kBook.width == 8) return least_at<B>(curves[side][0], scale);
    const float a = least_at<B>(curves[0][0], scale), b = least_at<B>(curves[1][0], scale);
    if constexpr (kPaired) {
      if (odd) {
        const float first = least_at<B>(curves[0][1], scale) + b, second = a + least_at<B>(curves[1][1], scale);
        return second < first ? second : first;
      }
    }
    return a + b;
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

  void trace_all(float low, float high, Arena &arena, float *buffer) {
    for (int i = 0; i < (kBook.width == 4 || kBook.shift == Shift::by_block ? 2 : 1); ++i)
      for (int flipped = 0; flipped < (kPaired && odd ? 2 : 1); ++flipped)
        trace<B>(curves[i][flipped], low, high, arena, buffer);
  }

  // Points at curves that do not move with the vector: call it again where the vector was copied.
  void choose(const Norms<B> &norms, int vector) {
    if constexpr (kBook.width == 4) {
      for (int half = 0; half < 2; ++half)
        for (int flipped = 0; flipped < 2; ++flipped)
          one(curves[half][flipped], {&cross[half][0], flipped ? &flip[half] : nullptr, norms.of(vector, half, 0), 0});
    } else if constexpr (kBook.shift == Shift::by_block) {
      for (int side = 0; side < 2; ++side)
        one(curves[side][0], {&cross[0][side], nullptr, norms.of(vector, 0, side), 0});
    } else {
      one(curves[0][0], {&cross[0][0], odd ? &flip[0] : nullptr, norms.of(vector, 0, 0), 0});
      if constexpr (kBook.shift == Shift::by_code) {
        curves[0][0].choices[1] = {&cross[0][1], nullptr, norms.of(vector, 0, 1), kBook.count};
        curves[0][0].many = 2;
      }
    }
  }

 private:
  static void one(Curve &curve, const Choices &choices) {
    curve.low = 1;
    curve.high = 0;
    curve.choices[0] = choices;
    curve.many = 1;
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

// The scale of each block of a super-block, and its codes.
template <Book B>
class SuperBlock {
 public:
  static constexpr BookFacts kBook = facts(B);

  SuperBlock() : arena_(static_cast<size_t>(kVectors) * 4 * kSides<B> * kBook.count + 4096), buffer_(2 * kBook.count) {}

  float d = 0;
  uint8_t scales[kBlocks<B>] = {}, shifts[kSuper / 32] = {};
  int32_t codes[kVectors] = {};

  // x: [256]; columns: [256] or null
  void search(const float *x, const float *columns, const Norms<B> &norms) {
    arena_.clear();
    for (int v = 0; v < kVectors; ++v) {
      vectors_[v].set(x + v * kVector, columns ? columns + v * kVector : nullptr, norms, v);
      if constexpr (kBook.even)
        for (int i = 0; i < kVector; ++i) {
          const float size = std::fabs(x[v * kVector + i]);
          vectors_[v].sizes[i] = columns ? size * columns[v * kVector + i] : size;
        }
    }
    float scale[kBlocks<B>];
    for (int b = 0; b < kBlocks<B>; ++b) scale[b] = search_block(b, x, columns);
    State best = start(scale);
    for (int i = 0; i < kRounds; ++i) {
      descend(best);
      refit(best);
    }
    keep(best);
  }

 private:
  struct State {
    float d = 0, total = 0;
    int q[kBlocks<B>] = {};
    float lost[kBlocks<B>] = {};
  };

  static float factor(int q) { return kBook.unit * static_cast<float>(2 * q + 1); }

  static float half(float a) { return f16(splat(a))[0]; }

  static float inverted(float a) { return std::fabs(a) > 1e-37f ? 1.0f / a : 0.0f; }

  Found block_at(int b, float scale, int side) const {
    Found sum;
    for (int i = 0; i < kInBlock<B>; ++i) {
      const Found found = vectors_[b * kInBlock<B> + i].best(scale, side);
      sum.value += found.value;
      sum.cross += found.cross;
      sum.norm += found.norm;
    }
    return sum;
  }

  // What a block loses at a scale, less a constant. `code` is the side to which its levels are shifted.
  Found block_at(int b, float scale) const {
    Found first = block_at(b, scale, 0);
    if constexpr (kBook.shift == Shift::by_block) {
      Found second = block_at(b, scale, 1);
      second.code = 1;
      if (second.value < first.value) return second;
    }
    return first;
  }

  // The value of `block_at` alone.
  float least_of(int b, float scale) const {
    float least[kSides<B>];
    constexpr int kTried = kBook.shift == Shift::by_block ? 2 : 1;
    for (int side = 0; side < kTried; ++side) {
      least[side] = 0;
      for (int i = 0; i < kInBlock<B>; ++i) least[side] += vectors_[b * kInBlock<B> + i].least(scale, side);
    }
    if constexpr (kTried == 2) return least[1] < least[0] ? least[1] : least[0];
    return least[0];
  }

  // The best scale of a block. The block's curves are traced around it.
  float search_block(int b, const float *x, const float *columns) {
    float energy = 0, mass = 0;
    for (int i = b * kBook.block; i < (b + 1) * kBook.block; ++i) {
      const float weight = columns ? columns[i] : 1.0f;
      energy += weight * (x[i] * x[i]);
      mass += weight;
    }
    const float guess = std::sqrt(energy / mass) / kBook.typical;
    if (!(guess > 1e-30f)) return 0;
    for (int i = 0; i < kInBlock<B>; ++i)
      vectors_[b * kInBlock<B> + i].trace_all(kLow * guess * 0.8f, kHigh * guess * 1.25f, arena_, buffer_.data());
    float best = 0, least = 0;
    float scale = kLow * guess;
    for (int i = 0; i < kTrials; ++i, scale *= kStep) {
      const float here = least_of(b, scale);
      if (here < least) {
        least = here;
        best = scale;
      }
    }
    if (best == 0) return 0;
    Found found = block_at(b, best);
    for (int i = 0; i < 2; ++i) {
      const float refitted = std::max(found.cross, 0.0f) * inverted(found.norm);
      found = block_at(b, refitted);
      if (!(found.value < least)) break;
      least = found.value;
      best = refitted;
    }
    return best;
  }

  void lose(State &s) const {
    s.total = 0;
    for (int b = 0; b < kBlocks<B>; ++b) {
      s.lost[b] = least_of(b, s.d * factor(s.q[b]));
      s.total += s.lost[b];
    }
  }

  State start(const float *scale) const {
    float largest = 0;
    for (int b = 0; b < kBlocks<B>; ++b) largest = std::max(largest, scale[b]);
    State best;
    if (!(largest > 0)) return best;
    bool first = true;
    for (float share : kShares) {
      State s;
      s.d = half(largest / (factor(kBook.top) * share));
      const float step = inverted(s.d * (2 * kBook.unit));
      for (int b = 0; b < kBlocks<B>; ++b) {
        const float q = std::nearbyint(scale[b] * step - 0.5f);
        s.q[b] = static_cast<int>(std::min(std::max(q, 0.0f), static_cast<float>(kBook.top)));
      }
      lose(s);
      if (first || s.total < best.total) best = s;
      first = false;
    }
    return best;
  }

  void descend(State &s) const {
    if (s.d == 0) return;
    for (int b = 0; b < kBlocks<B>; ++b) {
      const int middle = s.q[b];
      for (int step = -kReach; step <= kReach; ++step) {
        const int q = middle + step;
        if (step == 0 || q < 0 || q > kBook.top) continue;
        const float lost = least_of(b, s.d * factor(q));
        if (lost < s.lost[b]) {
          s.lost[b] = lost;
          s.q[b] = q;
        }
      }
    }
    s.total = 0;
    for (int b = 0; b < kBlocks<B>; ++b) s.total += s.lost[b];
  }

  void refit(State &best) const {
    float cross = 0, norm = 0;
    for (int b = 0; b < kBlocks<B>; ++b) {
      const float by = factor(best.q[b]);
      const Found found = block_at(b, best.d * by);
      cross += by * found.cross;
      norm += by * by * found.norm;
    }
    State s = best;
    s.d = half(std::max(cross, 0.0f) * inverted(norm));
    lose(s);
    if (s.total < best.total) best = s;
  }

  void keep(const State &best) {
    d = best.d;
    for (int b = 0; b < kBlocks<B>; ++b) {
      const float scale = best.d * factor(best.q[b]);
      scales[b] = static_cast<uint8_t>(best.q[b]);
      int side = 0;
      if constexpr (kBook.shift == Shift::by_block) {
        side = block_at(b, scale).code;
        shifts[b] = static_cast<uint8_t>(side);
      }
      for (int i = 0; i < kInBlock<B>; ++i) {
        const Vector<B> &vector = vectors_[b * kInBlock<B> + i];
        codes[b * kInBlock<B> + i] = vector.code(vector.best(scale, side));
      }
    }
  }

  Vector<B> vectors_[kVectors];
  Arena arena_;
  std::vector<float> buffer_;
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

// The best points of a code book for 64 vectors of weights at once, each at a scale of its own.
//
// At scale s a weight x with weight w loses s^2 w (l^2 - 2 l x / s) more at the level l than at 0. Less the smallest of
// its levels this is the excess of a level, and the excess of a point is the sum over its weights. Excesses are rounded
// to bytes in units of each lane's own, so that the point that is found may lose a little more than the best one: about
// a unit, of 255 that the lane's weights lose with their second best levels together. Where even that does not hold
// the best point, the lane's unit grows and the scan is repeated.
#pragma once

#include <algorithm>
#include <cstring>

#include "book_bytes.h"
#include "book_program.h"
#include "fit.h"

namespace bitsmith::quantize::BITSMITH_ISA {

template <Book B>
constexpr int kHalves = 8 / facts(B).width;
template <Book B>
constexpr int kSides = facts(B).shift == Shift::none ? 1 : 2;  // levels are shifted to either side
template <Book B>
constexpr int kBlocks = kSuper / facts(B).block;
template <Book B>
constexpr int kInBlock = facts(B).block / kVector;

// Levels by the field of a point.
template <Book B>
struct LevelTable {
  alignas(64) float of[16] = {};
  constexpr LevelTable() {
    for (int i = 0; i < 16; ++i) of[i] = facts(B).levels[facts(B).width == 8 ? ((i & 3) < 2 ? i & 3 : 2) : i & 7];
  }
};
template <Book B>
constexpr LevelTable<B> kLevelTable{};

// To bytes, downwards; what is above 255 becomes 255.
BITSMITH_INLINE void store_bytes(uint8_t *to, Floats a) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtusepi32_epi8(_mm512_cvttps_epi32(a)));
#else
  store(to, convert<Bytes>(convert<Ints>(min(a, splat(255.0f)))));
#endif
}

template <Book B>
class Scan {
 public:
  static constexpr BookFacts kBook = facts(B);
  static constexpr int kWidth = kBook.width;

  Scan() : program_(book_program(B)) { std::memset(shift, 0, sizeof shift); }

  // The 64 vectors (of signed books: magnitudes), their columns' weights, what is added to levels, and -1 where the
  // sign of one weight must flip
  alignas(64) float size[kWidth][kScan], weight[kWidth][kScan], shift[kScan];
  alignas(64) int32_t odd[kScan];

  // What is found: numbers of points and their fields
  alignas(64) int32_t number[kScan], fields[kScan];

  // To be called when weights have changed.
  void set_units() {
    constexpr float kStep = (kBook.levels[kLevels - 1] - kBook.levels[0]) / (kLevels - 1);
    for (int j = 0; j < kScan; j += kLanes) {
      Floats mass{};
      for (int i = 0; i < kWidth; ++i) mass += load<Floats>(weight[i] + j);
      const Floats unit = 255.0f / max(mass * (0.5f * kReach * kStep * kStep), splat(1e-30f));
      for (int i = 0; i < kWidth; ++i) store(units_[i] + j, load<Floats>(weight[i] + j) * unit);
    }
  }

  // Finds the points that lose least at the scales 1 / inverse [64]. Where a sign must flip, it is that of the weight
  // whose flip would cost least without the book, or, of lanes from `second` on, the one after it.
  void find(const float *inverse, int second) {
    for (int j = 0; j < kScan; j += kLanes) take(inverse, j);
    if constexpr (kBook.even) turn(second);
    for (float &reach : reach_) reach = 1;
    for (int tries = 0; tries < kTries; ++tries) {
      for (int j = 0; j < kScan; j += kLanes) measure(j);
      for (int j = 0; j < kScan; j += kByteLanes) scan(j);
      if (!grow()) break;
    }
    for (int j = 0; j < kScan; ++j) {
      number[j] = program_.numbers[static_cast<size_t>(found_.first[j] * program_.half + found_.second[j])];
      fields[j] = kBook.points[number[j]];
    }
  }

  // Sums over the weights of what was found: of weight x level, and of weight level^2; the least term of the first sum,
  // of books with even signs. cross, norm, least: [64]
  void sums(float *cross, float *norm, float *least) const {
    for (int j = 0; j < kScan; j += kLanes) {
      const Ints point = load<Ints>(fields + j);
      const Floats shifted = load<Floats>(shift + j);
      Floats crosses{}, norms{}, smallest = splat(__builtin_inff());
      for (int i = 0; i < kWidth; ++i) {
        Floats level = look_up(kLevelTable<B>.of, point >> (16 / kWidth * i));
        if constexpr (kBook.shift != Shift::none) level += shifted;
        const Floats w = load<Floats>(weight[i] + j), term = w * load<Floats>(size[i] + j) * level;
        crosses += term;
        norms += w * (level * level);
        if constexpr (kBook.even) smallest = min(smallest, term);
      }
      store(cross + j, crosses);
      store(norm + j, norms);
      store(least + j, smallest);
    }
  }

 private:
  static constexpr int kLevels = kWidth == 8 ? 3 : 8, kSide = kWidth == 8 ? 9 : 8, kHalf = kSide * kSide;
  static constexpr int kTries = 6;
  static constexpr float kReach = kWidth == 8 ? 1.25f : 3.0f;  // so that hardly any lane has to grow
  static constexpr float kFar = 1e6f;

  // The best pairs of all lanes.
  struct Pairs {
    alignas(64) uint8_t value[kScan], first[kScan], second[kScan];
  };

  // Weights over scales, for `kLanes` lanes.
  void take(const float *inverses, int j) {
    const Floats inverse = load<Floats>(inverses + j), shifted = load<Floats>(shift + j);
    for (int i = 0; i < kWidth; ++i) {
      Floats y = clip(load<Floats>(size[i] + j) * inverse, -kFar, kFar);
      if constexpr (kBook.shift != Shift::none) y -= shifted;
      store(ratio_[i] + j, y);
    }
  }

  // Turns the sign of one weight of each vector that needs it. A weight below the least level l loses w 4 l y more with
  // the wrong sign, and a larger one w (y + l)^2.
  void turn(int second) {
    constexpr float kLeast = kBook.levels[0];
    for (int j = 0; j < (kWidth == 8 ? kScan : kVectors); j += kLanes) {
      Floats cost[kVector], least = splat(__builtin_inff());
      for (int i = 0; i < kVector; ++i) {
        const int row = i % kWidth, at = j + i / kWidth * kVectors;
        const Floats y = load<Floats>(ratio_[row] + at), beyond = max(y - kLeast, Floats{});
        cost[i] = load<Floats>(weight[row] + at) * (y * (4 * kLeast) + beyond * beyond);
        least = min(least, cost[i]);
      }
      if (j >= second) {
        Floats next = splat(__builtin_inff());
        Ints open = Ints{} - 1;
        for (int i = 0; i < kVector; ++i) {
          const Ints taken = open & (cost[i] == least);
          open &= ~taken;
          cost[i] = taken ? splat(__builtin_inff()) : cost[i];
          next = min(next, cost[i]);
        }
        least = next;
      }
      Ints open = load<Ints>(odd + j);
      for (int i = 0; i < kVector; ++i) {
        const int row = i % kWidth, at = j + i / kWidth * kVectors;
        const Ints turned = open & (cost[i] == least);
        open &= ~turned;
        flip(ratio_[row] + at, turned);
      }
    }
  }

  static BITSMITH_INLINE void flip(float *x, Ints where) {
    store(x, as<Floats>(as<Ints>(load<Floats>(x)) ^ (where & INT32_MIN)));
  }

  // Grows the units of lanes that do not hold what was found. Whether there are any
  bool grow() {
    bool any = false;
    for (int j = 0; j < kScan; ++j) {
      const bool full = found_.value[j] == 255;
      reach_[j] *= full ? 0.25f : 1.0f;
      any |= full;
    }
    return any;
  }

  // Tables of the quarters for `kLanes` lanes.
  void measure(int j) {
    Floats excess[kWidth][kLevels];
    const Floats reach = load<Floats>(reach_ + j);
    constexpr float kRound = kWidth == 8 ? 0.25f : 0.5f;  // so that sums of a quarter are rounded half up
    for (int i = 0; i < kWidth; ++i) {
      const Floats w = load<Floats>(units_[i] + j) * reach, y = load<Floats>(ratio_[i] + j), twice = y + y;
      Floats least = splat(__builtin_inff());
      for (int l = 0; l < kLevels; ++l) {
        excess[i][l] = (kBook.levels[l] - twice) * (kBook.levels[l] * w);
        least = min(least, excess[i][l]);
      }
      least -= kRound;
      for (int l = 0; l < kLevels; ++l) excess[i][l] -= least;
    }
    for (int q = 0; q < 4; ++q) {
      for (int k = 0; k < kSide; ++k) {
        if constexpr (kWidth == 8)
          store_bytes(quarter_[q][k] + j, excess[2 * q][k % 3] + excess[2 * q + 1][k / 3]);
        else
          store_bytes(quarter_[q][k] + j, excess[q][k]);
      }
    }
  }

  static BITSMITH_INLINE ByteLanes at(const uint8_t *from) { return load<ByteLanes>(from); }

  // The best pairs of `kByteLanes` lanes, from lane j on.
  void scan(int j) {
    uint8_t *mins = mins_ + j;
    for (int b = 0, k = 0; b < kSide; ++b) {
      const ByteLanes outer = at(quarter_[3][b] + j);
      for (int a = 0; a < kSide; ++a, ++k) store(mins + k * kScan, add_bounded(at(quarter_[2][a] + j), outer));
    }
    int next = kHalf * kScan;
    for (const auto &step : program_.steps) {
      store(mins + next, smaller(at(mins + step.one), at(mins + step.two)));
      next += kScan;
    }
    ByteLanes best = bytes_of(255), first{}, target{};
    for (const auto &row : program_.rows) {
      const uint16_t *entries = program_.mins.data() + row.begin;
      ByteLanes least = at(mins + entries[0]);
      for (int k = 1; k < row.count; ++k) least = smaller(least, at(mins + entries[k]));
      const int a = row.first % kSide, b = row.first / kSide;
      const ByteLanes total = add_bounded(add_bounded(at(quarter_[0][a] + j), at(quarter_[1][b] + j)), least);
      const ByteMask better = below(total, best);
      best = smaller(total, best);
      first = choose(better, bytes_of(static_cast<uint8_t>(row.first)), first);
      target = choose(better, least, target);
    }
    store(found_.value + j, best);
    store(found_.first + j, first);
    store(found_.second + j, second_of(j, first, target));
  }

  // The second half beside `first` that loses `target`.
  ByteLanes second_of(int j, ByteLanes first, ByteLanes target) {
    constexpr int kWords = (kHalf + 31) / 32;
    alignas(64) uint32_t words[kWords][kByteLanes];
    for (int lane = 0; lane < kByteLanes; ++lane) {
      const auto &member = program_.members[first[lane]];
      for (int k = 0; k < kWords; ++k) words[k][lane] = member[k];
    }
    ByteLanes second{};
    for (int k = 0; 8 * k < kHalf; ++k) {
      alignas(64) uint8_t byte[kByteLanes];
      for (int lane = 0; lane < kByteLanes; lane += kLanes)
        store(byte + lane, convert<Bytes>(load<Words>(words[k / 4] + lane) >> (8 * (k % 4)) & 255u));
      const ByteLanes members = load<ByteLanes>(byte);
      for (int bit = 0; bit < 8 && 8 * k + bit < kHalf; ++bit) {
        const int number = 8 * k + bit;
        const ByteLanes loss = at(mins_ + number * kScan + j);
        const ByteMask hit = any_bit(equal(loss, target), members, bytes_of(static_cast<uint8_t>(1 << bit)));
        second = choose(hit, bytes_of(static_cast<uint8_t>(number)), second);
      }
    }
    return second;
  }

  const BookProgram &program_;
  alignas(64) float units_[kWidth][kScan], ratio_[kWidth][kScan], reach_[kScan];
  alignas(64) uint8_t quarter_[4][9][kScan], mins_[kMostMins * kScan];
  Pairs found_;
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

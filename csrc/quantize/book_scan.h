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

  Scan() : program_(book_program(B)) {
    for (int i = 0; i < 16; ++i) levels_[i] = kBook.levels[kWidth == 8 ? std::min(i & 3, 2) : i & 7];
    std::memset(shift, 0, sizeof shift);
  }

  // The 64 vectors (of signed books: magnitudes), their columns' weights, what is added to levels, and -1 where the
  // sign of one weight must flip
  alignas(64) float size[kWidth][kScan], weight[kWidth][kScan], shift[kScan];
  alignas(64) int32_t odd[kScan];

  // What is found: numbers of points and their fields
  struct Points {
    alignas(64) int32_t number[kScan], fields[kScan];
  };
  Points best, plain;  // plain: without a flipped sign, where both are wanted (`kBoth`)

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

  // Finds the points that lose least at the scales 1 / inverse [64]. Flips: heeds `odd`
  template <bool Flips>
  void find(const float *inverse) {
    for (float &reach : reach_) reach = 1;
    for (int tries = 0; tries < kTries; ++tries) {
      for (int j = 0; j < kScan; j += kLanes) measure<Flips>(inverse, j);
      for (int j = 0; j < kScan; j += kByteLanes) scan<Flips>(j);
      if (!grow<Flips>()) break;
    }
    name(best, found_);
    if constexpr (Flips && kBoth) name(plain, plain_);
  }

  // Sums over the weights of what was found: of weight x level, and of weight level^2. cross, norm: [64]
  template <bool Flips>
  void sums(const Points &points, float *cross, float *norm) const {
    for (int j = 0; j < kScan; j += kLanes) {
      const Ints point = load<Ints>(points.fields + j), flips = load<Ints>(odd + j);
      const Floats shifted = load<Floats>(shift + j);
      Floats crosses{}, norms{}, least = splat(__builtin_inff());
      for (int i = 0; i < kWidth; ++i) {
        Floats level = look_up(levels_, point >> (16 / kWidth * i));
        if constexpr (kBook.shift != Shift::none) level += shifted;
        const Floats w = load<Floats>(weight[i] + j), term = w * load<Floats>(size[i] + j) * level;
        crosses += term;
        norms += w * (level * level);
        if constexpr (Flips) least = min(least, term);
      }
      if constexpr (Flips) crosses -= as<Floats>(as<Ints>(2.0f * least) & flips);
      store(cross + j, crosses);
      store(norm + j, norms);
    }
  }

 private:
  static constexpr bool kBoth = kBook.even && kWidth == 4;
  static constexpr int kLevels = kWidth == 8 ? 3 : 8, kSide = kWidth == 8 ? 9 : 8, kHalf = kSide * kSide;
  static constexpr int kTries = 6;
  static constexpr float kReach = kWidth == 8 ? 1.25f : 3.0f;  // so that hardly any lane has to grow
  static constexpr float kFar = 1e6f;

  // The best pairs of all lanes.
  struct Pairs {
    alignas(64) uint8_t value[kScan], first[kScan], second[kScan];
  };

  // Grows the units of lanes that do not hold what was found. Whether there are any
  template <bool Flips>
  bool grow() {
    bool any = false;
    for (int j = 0; j < kScan; ++j) {
      const bool full = found_.value[j] == 255 || (Flips && kBoth && plain_.value[j] == 255);
      reach_[j] *= full ? 0.25f : 1.0f;
      any |= full;
    }
    return any;
  }

  void name(Points &to, const Pairs &pairs) const {
    for (int j = 0; j < kScan; ++j) {
      to.number[j] = program_.numbers[static_cast<size_t>(pairs.first[j] * program_.half + pairs.second[j])];
      to.fields[j] = kBook.points[to.number[j]];
    }
  }

  // Tables of the quarters for `kLanes` lanes.
  template <bool Flips>
  void measure(const float *inverses, int j) {
    Floats excess[kWidth][kLevels], slope[kWidth];
    const Floats inverse = load<Floats>(inverses + j), shifted = load<Floats>(shift + j),
                 reach = load<Floats>(reach_ + j);
    constexpr float kRound = kWidth == 8 ? 0.25f : 0.5f;  // so that sums of a quarter are rounded half up
    for (int i = 0; i < kWidth; ++i) {
      const Floats w = load<Floats>(units_[i] + j) * reach;
      Floats y = clip(load<Floats>(size[i] + j) * inverse, -kFar, kFar);
      if constexpr (kBook.shift != Shift::none) y -= shifted;
      const Floats twice = y + y;
      Floats least = splat(__builtin_inff());
      for (int l = 0; l < kLevels; ++l) {
        excess[i][l] = (kBook.levels[l] - twice) * (kBook.levels[l] * w);
        least = min(least, excess[i][l]);
      }
      least -= kRound;
      for (int l = 0; l < kLevels; ++l) excess[i][l] -= least;
      if constexpr (Flips) slope[i] = as<Floats>(as<Ints>(2.0f * w * twice) & load<Ints>(odd + j));
    }
    quarters(quarter_, j, [&](int i, int l) { return excess[i][l]; }, [](Floats a, Floats b) { return a + b; });
    if constexpr (Flips)
      quarters(
          flip_, j, [&](int i, int l) { return slope[i] * kBook.levels[l]; },
          [](Floats a, Floats b) { return min(a, b); });
  }

  template <class Term, class Combine>
  static BITSMITH_INLINE void quarters(uint8_t (&to)[4][9][kScan], int j, const Term &term, const Combine &combine) {
    for (int q = 0; q < 4; ++q) {
      for (int k = 0; k < kSide; ++k) {
        if constexpr (kWidth == 8)
          store_bytes(to[q][k] + j, combine(term(2 * q, k % 3), term(2 * q + 1, k / 3)));
        else
          store_bytes(to[q][k] + j, term(q, k));
      }
    }
  }

  static BITSMITH_INLINE ByteLanes at(const uint8_t *from) { return load<ByteLanes>(from); }

  // The best pairs of `kByteLanes` lanes, from lane j on.
  template <bool Flips>
  void scan(int j) {
    uint8_t *mins = mins_ + j, *flipped = flipped_ + j;
    for (int b = 0, k = 0; b < kSide; ++b) {
      const ByteLanes outer = at(quarter_[3][b] + j), outer_flip = Flips ? at(flip_[3][b] + j) : ByteLanes{};
      for (int a = 0; a < kSide; ++a, ++k) {
        const ByteLanes sum = add_bounded(at(quarter_[2][a] + j), outer);
        store(mins + k * kScan, sum);
        if constexpr (Flips) store(flipped + k * kScan, add_bounded(sum, smaller(at(flip_[2][a] + j), outer_flip)));
      }
    }
    int next = kHalf * kScan;
    for (const auto &step : program_.steps) {
      store(mins + next, smaller(at(mins + step.one), at(mins + step.two)));
      if constexpr (Flips) store(flipped + next, smaller(at(flipped + step.one), at(flipped + step.two)));
      next += kScan;
    }
    Best best, unflipped;
    for (const auto &row : program_.rows) {
      const uint16_t *entries = program_.mins.data() + row.begin;
      ByteLanes least = at(mins + entries[0]), least_flipped = Flips ? at(flipped + entries[0]) : ByteLanes{};
      for (int k = 1; k < row.count; ++k) {
        least = smaller(least, at(mins + entries[k]));
        if constexpr (Flips) least_flipped = smaller(least_flipped, at(flipped + entries[k]));
      }
      const int a = row.first % kSide, b = row.first / kSide;
      const auto first = static_cast<uint8_t>(row.first);
      const ByteLanes own = add_bounded(at(quarter_[0][a] + j), at(quarter_[1][b] + j));
      const ByteLanes total = add_bounded(own, least);
      if constexpr (Flips) {
        const ByteLanes own_flipped = add_bounded(own, smaller(at(flip_[0][a] + j), at(flip_[1][b] + j)));
        const ByteLanes one = add_bounded(own_flipped, least), other = add_bounded(own, least_flipped);
        const ByteMask in_second = below(other, one);
        const ByteMask better = best.take(smaller(one, other), first, choose(in_second, least_flipped, least));
        best.kind = choose(better, choose(in_second, bytes_of(255), ByteLanes{}), best.kind);
        if constexpr (kBoth) unflipped.take(total, first, least);
      } else {
        best.take(total, first, least);
      }
    }
    keep<Flips>(found_, best, j);
    if constexpr (Flips && kBoth) keep<false>(plain_, unflipped, j);
  }

  // The best first half so far, what its second half loses, and whether that has the flipped sign.
  struct Best {
    ByteLanes value = bytes_of(255), first{}, target{}, kind{};

    BITSMITH_INLINE ByteMask take(ByteLanes total, uint8_t number, ByteLanes second) {
      const ByteMask better = below(total, value);
      value = smaller(total, value);
      first = choose(better, bytes_of(number), first);
      target = choose(better, second, target);
      return better;
    }
  };

  template <bool Flips>
  void keep(Pairs &to, const Best &best, int j) {
    store(to.value + j, best.value);
    store(to.first + j, best.first);
    store(to.second + j, second_of<Flips>(j, best.first, best.target, best.kind));
  }

  // The second half beside `first` that loses `target`: with a flipped sign where `kind` is not 0.
  template <bool Flips>
  ByteLanes second_of(int j, ByteLanes first, ByteLanes target, ByteLanes kind) {
    alignas(64) uint32_t words[kWordsOfHalf][kByteLanes];
    for (int lane = 0; lane < kByteLanes; ++lane) {
      const auto &member = program_.members[first[lane]];
      for (int k = 0; k < kWordsOfHalf; ++k) words[k][lane] = member[k];
    }
    const ByteMask is_flipped = below(ByteLanes{}, kind);
    ByteLanes second{};
    for (int k = 0; 8 * k < kHalf; ++k) {
      alignas(64) uint8_t byte[kByteLanes];
      for (int lane = 0; lane < kByteLanes; lane += kLanes)
        store(byte + lane, convert<Bytes>(load<Words>(words[k / 4] + lane) >> (8 * (k % 4)) & 255u));
      const ByteLanes members = load<ByteLanes>(byte);
      for (int bit = 0; bit < 8 && 8 * k + bit < kHalf; ++bit) {
        const int number = 8 * k + bit;
        ByteLanes loss = at(mins_ + number * kScan + j);
        if constexpr (Flips) loss = choose(is_flipped, at(flipped_ + number * kScan + j), loss);
        const ByteMask hit = any_bit(equal(loss, target), members, bytes_of(static_cast<uint8_t>(1 << bit)));
        second = choose(hit, bytes_of(static_cast<uint8_t>(number)), second);
      }
    }
    return second;
  }

  const BookProgram &program_;
  alignas(64) float units_[kWidth][kScan], levels_[16], reach_[kScan];
  alignas(64) uint8_t quarter_[4][9][kScan], flip_[4][9][kScan];
  alignas(64) uint8_t mins_[kMostMins * kScan], flipped_[kMostMins * kScan];
  Pairs found_, plain_;
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

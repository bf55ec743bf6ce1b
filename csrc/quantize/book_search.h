// Scales and codes of super-blocks of IQ1, IQ2 and IQ3; `CodeBookFormat` of quant/formats/code_books.py.
//
// A code loses s (s norm - 2 cross) at scale s, where norm and cross do not depend on s. So each scan of the book at
// one scale gives a code for every vector that can be tried at any other scale for three operations. A few scans
// collect such codes around the scales that fit best so far; scales, their integers and d are chosen among them alone.
#pragma once

#include <cmath>

#include "book_scan.h"

namespace bitsmith::quantize::BITSMITH_ISA {

constexpr float kShares[] = {0.88f, 0.95f, 1.0f, 1.06f};  // of the largest scale: tried for d
constexpr int kMostCodes = 16;                            // of a vector that are tried

// The vectors of a super-block lie in lanes: even ones in lanes 0 .. 15, odd ones in 16 .. 31. So the sums of blocks
// are sums of neighbours.
constexpr int lane_of(int vector) { return (vector & 1) * 16 + vector / 2; }

// Values of the super-block's blocks.
struct BlockValues {
  alignas(64) float of[16];
};

template <Book B>
BITSMITH_INLINE BlockValues sum_blocks(const float *lanes) {
  BlockValues sums;
  if constexpr (kBlocks<B> == 16) {
    for (int b = 0; b < 16; ++b) sums.of[b] = lanes[b] + lanes[16 + b];
  } else {
    float pairs[16];
    for (int i = 0; i < 16; ++i) pairs[i] = lanes[i] + lanes[16 + i];
    for (int b = 0; b < 8; ++b) sums.of[b] = pairs[2 * b] + pairs[2 * b + 1];
  }
  return sums;
}

template <Book B>
BITSMITH_INLINE void spread(const float *blocks, float *lanes) {
  constexpr int kShared = 16 / kBlocks<B>;
  for (int i = 0; i < 16; ++i) lanes[i] = lanes[16 + i] = blocks[i / kShared];
}

// Codes of the vectors, and their sums.
struct Codes {
  alignas(64) float cross[kVectors], norm[kVectors];
  alignas(64) int32_t code[kVectors];
};

// What blocks lose at a scale, less a constant; the sums of the codes that lose it. side: of shifted levels
struct Fitted {
  BlockValues value, cross, norm;
  uint8_t side[16];
};

template <Book B>
class SuperBlock {
 public:
  static constexpr BookFacts kBook = facts(B);
  static constexpr int kCount = kBlocks<B>;

  float d = 0;
  uint8_t scales[kCount] = {}, shifts[kSuper / 32] = {};
  int32_t codes[kVectors] = {};

  // For the rows to come. columns: [256] or null, weights of columns
  void set_columns(const float *columns) {
    for (int v = 0; v < kVectors; ++v)
      for (int i = 0; i < kVector; ++i) weight_[i][lane_of(v)] = columns ? columns[v * kVector + i] : 1.0f;
    for (int i = 0; i < kVector; ++i)
      for (int part = 0; part < 2; ++part)
        if (kBook.width == 8 || part == i / 4)
          std::memcpy(scan_.weight[i % kBook.width] + part * kVectors, weight_[i], sizeof weight_[i]);
    scan_.set_units();
    if constexpr (kSides<B> == 2)
      for (int j = 0; j < kScan; ++j) scan_.shift[j] = j < kVectors ? kShift : -kShift;
    float mass[kVectors] = {};
    for (int i = 0; i < kVector; ++i)
      for (int j = 0; j < kVectors; ++j) mass[j] += weight_[i][j];
    mass_ = sum_blocks<B>(mass);
  }

  // x: [256]
  void search(const float *x) {
    take(x);
    BlockValues scale = guess();
    collect(scale);
    keep(chosen(scale));
  }

 private:
  struct State {
    float d = 0, total = 0;
    int q[16] = {};
    float lost[16] = {};
  };

  static float factor(int q) { return kBook.unit * static_cast<float>(2 * q + 1); }
  static float half(float a) { return f16(splat(a))[0]; }
  static float inverted(float a) { return std::fabs(a) > 1e-37f ? 1.0f / a : 0.0f; }

  void take(const float *x) {
    count_ = 0;
    if constexpr (kLanes == 16) {
      Floats rows[kLanes];
      for (int r = 0; r < kLanes; ++r) rows[r] = load<Floats>(x + r * kLanes);
      transpose(rows);
      for (int c = 0; c < kLanes; ++c) store(x_[c % 8] + c / 8 * 16, rows[c]);
    } else {
      for (int v = 0; v < kVectors; ++v)
        for (int i = 0; i < kVector; ++i) x_[i][lane_of(v)] = x[v * kVector + i];
    }
    Ints signs[kVectors / kLanes] = {};
    for (int i = 0; i < kVector; ++i) {
      const int row = i % kBook.width, from = i / kBook.width * kVectors;
      for (int j = 0; j < kVectors; j += kLanes) {
        const Floats each = load<Floats>(x_[i] + j), size = kBook.is_signed ? absolute(each) : each;
        signs[j / kLanes] |= (each < 0.0f) & (1 << i);
        store(scan_.size[row] + from + j, size);
        if (kBook.width == 8) store(scan_.size[row] + kVectors + j, size);
      }
    }
    if constexpr (kBook.is_signed) {
      for (int j = 0; j < kVectors; j += kLanes) {
        const Ints bits = signs[j / kLanes], four = bits ^ bits >> 4, two = four ^ four >> 2;
        const Ints odd = -((two ^ two >> 1) & 1);
        store(signs_ + j, bits);
        store(scan_.odd + j, odd);
        store(scan_.odd + kVectors + j, odd);
      }
    }
  }

  // Scales that the blocks' norms suggest. Of signed books `flat_` becomes the sum of weight x level for the point
  // whose levels are all the smallest.
  BlockValues guess() {
    alignas(64) float energy[kVectors], flat[kVectors];
    for (int j = 0; j < kVectors; j += kLanes) {
      Floats squares{}, sum{}, least = splat(__builtin_inff());
      for (int i = 0; i < kVector; ++i) {
        const Floats x = load<Floats>(x_[i] + j), weighted = load<Floats>(weight_[i] + j) * absolute(x);
        squares += weighted * absolute(x);
        sum += weighted;
        least = min(least, weighted);
      }
      if constexpr (kBook.even) sum -= as<Floats>(as<Ints>(2.0f * least) & load<Ints>(scan_.odd + j));
      store(energy + j, squares);
      store(flat + j, sum * kBook.levels[0]);
    }
    flat_ = sum_blocks<B>(flat);
    BlockValues scale = sum_blocks<B>(energy);
    for (int b = 0; b < kCount; ++b) {
      const float root = std::sqrt(scale.of[b] / mass_.of[b]) / kBook.typical;
      scale.of[b] = root > 1e-30f ? root : 0;
    }
    return scale;
  }

  // Adds the best codes at two scales (books of eight weights without shift), or at the first.
  void add(const BlockValues &one, const BlockValues &two, int second = kScan) {
    alignas(64) float inverse[kScan];
    BlockValues inverses[2];
    for (int b = 0; b < kCount; ++b) {
      inverses[0].of[b] = inverted(one.of[b]);
      inverses[1].of[b] = inverted(kPairs ? two.of[b] : one.of[b]);
    }
    spread<B>(inverses[0].of, inverse);
    spread<B>(inverses[1].of, inverse + kVectors);
    alignas(64) float cross[kScan], norm[kScan], least[kScan];
    scan_.find(inverse, second);
    scan_.sums(cross, norm, least);
    if constexpr (kBook.width == 8) {
      for (int part = 0; part < 2; ++part) {
        constexpr bool kApart = kBook.shift == Shift::by_block;
        Codes &to = codes_[kApart ? part : 0][count_ + (kApart ? 0 : part)];
        const int tag = kBook.shift == Shift::by_code ? part * kBook.count : 0;
        for (int j = 0, k = part * kVectors; j < kVectors; ++j, ++k) {
          to.cross[j] = cross[k];
          to.norm[j] = norm[k];
          to.code[j] = scan_.number[k] + tag;
        }
        if constexpr (kBook.even) turn(least + part * kVectors, to);
      }
      count_ += kBook.shift == Shift::by_block ? 1 : 2;
    } else {
      Codes &to = codes_[0][count_++];
      for (int j = 0, k = kVectors; j < kVectors; ++j, ++k) {
        to.cross[j] = cross[j] + cross[k];
        to.norm[j] = norm[j] + norm[k];
        to.code[j] = scan_.number[j] | scan_.number[k] << kBook.index_bits;
        least[j] = std::min(least[j], least[k]);
      }
      if constexpr (kBook.even) turn(least, to);
    }
  }

  // Where the number of negative weights is odd, the sign of the weight is flipped that costs least.
  void turn(const float *least, Codes &to) {
    for (int j = 0; j < kVectors; j += kLanes) {
      const Floats flipped = as<Floats>(as<Ints>(2.0f * load<Floats>(least + j)) & load<Ints>(scan_.odd + j));
      store(to.cross + j, load<Floats>(to.cross + j) - flipped);
    }
  }

  // The best codes at a scale for each block.
  Fitted at(const BlockValues &scale) const { return at(scale, 0, count_); }

  // The same among the codes `from` .. `to` - 1.
  Fitted at(const BlockValues &scale, int from, int to) const {
    Fitted found[kTried];
    alignas(64) float lanes[kVectors];
    spread<B>(scale.of, lanes);
    for (int side = 0; side < kTried; ++side) {
      alignas(64) float value[kVectors], cross[kVectors], norm[kVectors];
      for (int j = 0; j < kVectors; j += kLanes) {
        const Floats s = load<Floats>(lanes + j);
        Floats best_cross = load<Floats>(codes_[side][from].cross + j),
               best_norm = load<Floats>(codes_[side][from].norm + j);
        Floats best = s * (s * best_norm - (best_cross + best_cross));
        for (int k = from + 1; k < to; ++k) {
          const Floats c = load<Floats>(codes_[side][k].cross + j), n = load<Floats>(codes_[side][k].norm + j);
          const Floats here = s * (s * n - (c + c));
          const Ints better = here < best;
          best = better ? here : best;
          best_cross = better ? c : best_cross;
          best_norm = better ? n : best_norm;
        }
        store(value + j, best);
        store(cross + j, best_cross);
        store(norm + j, best_norm);
      }
      found[side].value = sum_blocks<B>(value);
      found[side].cross = sum_blocks<B>(cross);
      found[side].norm = sum_blocks<B>(norm);
      std::memset(found[side].side, side, sizeof found[side].side);
    }
    if constexpr (kTried == 2) {
      for (int b = 0; b < kCount; ++b) {
        if (!(found[1].value.of[b] < found[0].value.of[b])) continue;
        found[0].value.of[b] = found[1].value.of[b];
        found[0].cross.of[b] = found[1].cross.of[b];
        found[0].norm.of[b] = found[1].norm.of[b];
        found[0].side[b] = 1;
      }
    }
    return found[0];
  }

  // The values of `at` alone.
  BlockValues least(const BlockValues &scale) const {
    BlockValues found[kTried];
    alignas(64) float lanes[kVectors], value[kVectors];
    spread<B>(scale.of, lanes);
    for (int side = 0; side < kTried; ++side) {
      for (int j = 0; j < kVectors; j += kLanes) {
        const Floats s = load<Floats>(lanes + j);
        Floats best = splat(__builtin_inff());
        for (int k = 0; k < count_; ++k) {
          const Floats c = load<Floats>(codes_[side][k].cross + j), n = load<Floats>(codes_[side][k].norm + j);
          best = min(s * (s * n - (c + c)), best);
        }
        store(value + j, best);
      }
      found[side] = sum_blocks<B>(value);
    }
    if constexpr (kTried == 2)
      for (int b = 0; b < kCount; ++b) found[0].of[b] = std::min(found[0].of[b], found[1].of[b]);
    return found[0];
  }

  // The scale that fits the codes `from` .. `to` - 1 that are best at a scale; keeps it where it loses less.
  void better(BlockValues &scale, BlockValues &value, const BlockValues &tried, int from, int to) const {
    const Fitted found = at(tried, from, to);
    for (int b = 0; b < kCount; ++b) {
      const float cross = std::max(found.cross.of[b], 0.0f), here = cross * inverted(found.norm.of[b]);
      if (!(-cross * here < value.of[b])) continue;
      value.of[b] = -cross * here;
      scale.of[b] = here;
    }
  }

  static BlockValues times(const BlockValues &scale, float by) {
    BlockValues to;
    for (int b = 0; b < kCount; ++b) to.of[b] = scale.of[b] * by;
    return to;
  }

  // What blocks lose at a scale with any odd multiples of the smallest level, and what the book loses more on average.
  BlockValues without_book(const BlockValues &scale) const {
    constexpr float kExcess = 0.2f, kUnit = kBook.levels[0];
    alignas(64) float inverse[kVectors], lost[kVectors], lanes[kVectors];
    BlockValues inverses;
    for (int b = 0; b < kCount; ++b) inverses.of[b] = inverted(scale.of[b] * kUnit);
    spread<B>(inverses.of, inverse);
    spread<B>(scale.of, lanes);
    for (int j = 0; j < kVectors; j += kLanes) {
      const Floats by = load<Floats>(inverse + j);
      Floats sum{};
      for (int i = 0; i < kVector; ++i) {
        const Floats y = absolute(load<Floats>(x_[i] + j)) * by;
        const Floats off = y - (2.0f * convert<Floats>(convert<Ints>(min(y * 0.5f, splat(7.0f)))) + 1.0f);
        sum += load<Floats>(weight_[i] + j) * (off * off + kExcess);
      }
      const Floats s = load<Floats>(lanes + j) * kUnit;
      store(lost + j, sum * (s * s));
    }
    return sum_blocks<B>(lost);
  }

  // The best of many scales by `without_book`.
  BlockValues presumed(const BlockValues &guess) const {
    constexpr int kTrials = 10;
    BlockValues best = guess, least{};
    float by = 0.62f;
    for (int k = 0; k < kTrials; ++k, by *= 1.1f) {
      const BlockValues scale = times(guess, by), lost = without_book(scale);
      for (int b = 0; b < kCount; ++b) {
        if (k && !(lost.of[b] < least.of[b])) continue;
        least.of[b] = lost.of[b];
        best.of[b] = scale.of[b];
      }
    }
    return best;
  }

  // Codes at a few scales, and the best scale of each block with them, which replaces the guess.
  void collect(BlockValues &scale) {
    constexpr int kEach = kBook.shift == Shift::by_code ? 2 : 1;  // codes of a vector at one scale
    const BlockValues middle = kBook.width == 4 ? presumed(scale) : scale;
    BlockValues value{}, tried[kFirst];
    for (int b = 0; b < kCount; ++b) {
      scale.of[b] = 0;
      if constexpr (!kBook.is_signed) continue;
      const float cross = std::max(flat_.of[b], 0.0f);
      scale.of[b] = cross * inverted(kBook.levels[0] * kBook.levels[0] * mass_.of[b]);
      value.of[b] = -cross * scale.of[b];
    }
    float by = kLow;
    for (int i = 0; i < kFirst; ++i, by *= kStep) tried[i] = times(middle, by);
    for (int i = 0; i < kFirst; i += kPairs ? 2 : 1) add(tried[i], tried[std::min(i + 1, kFirst - 1)]);
    for (int i = 0; i < kFirst; ++i) better(scale, value, tried[i], kEach * i, kEach * (i + 1));
    if (kFirst > 1) better(scale, value, BlockValues(scale), 0, count_);
  }

  // apart: added to integer scales
  BlockValues scales_of(const State &s, int apart = 0) const {
    BlockValues scale;
    for (int b = 0; b < kCount; ++b) scale.of[b] = s.d * factor(std::min(std::max(s.q[b] + apart, 0), kBook.top));
    return scale;
  }

  void lose(State &s) const {
    const BlockValues lost = least(scales_of(s));
    s.total = 0;
    for (int b = 0; b < kCount; ++b) s.total += s.lost[b] = lost.of[b];
  }

  State chosen(const BlockValues &scale) {
    float largest = 0;
    for (int b = 0; b < kCount; ++b) largest = std::max(largest, scale.of[b]);
    State best;
    if (!(largest > 0)) {
      add(scale, scale);
      return best;
    }
    for (float share : kShares) {
      State s;
      s.d = half(largest / (factor(kBook.top) * share));
      const float step = inverted(s.d * (2 * kBook.unit));
      for (int b = 0; b < kCount; ++b) {
        const float q = std::nearbyint(scale.of[b] * step - 0.5f);
        s.q[b] = static_cast<int>(std::min(std::max(q, 0.0f), static_cast<float>(kBook.top)));
      }
      lose(s);
      if (share == kShares[0] || s.total < best.total) best = s;
    }
    descend(best);
    const State start = best;
    for (int apart : {0, -1, 1})
      if (apart == 0 || kBook.width == 4) add(scales_of(start, apart), scales_of(start, 1));
    if (kBook.even && kBook.width == 4) add(scales_of(start), scales_of(start), 0);
    if (kBook.even && kBook.width == 8) add(scales_of(start, -1), scales_of(start), kVectors);
    lose(best);
    descend(best);
    refit(best);
    descend(best);
    return best;
  }

  void descend(State &s) const {
    if (s.d == 0) return;
    const State middle = s;
    for (int step = -1; step <= 1; step += 2) {
      State tried = middle;
      for (int b = 0; b < kCount; ++b) tried.q[b] = std::min(std::max(middle.q[b] + step, 0), kBook.top);
      const BlockValues lost = least(scales_of(tried));
      for (int b = 0; b < kCount; ++b) {
        if (!(lost.of[b] < s.lost[b])) continue;
        s.lost[b] = lost.of[b];
        s.q[b] = tried.q[b];
      }
    }
    s.total = 0;
    for (int b = 0; b < kCount; ++b) s.total += s.lost[b];
  }

  void refit(State &best) const {
    float cross = 0, norm = 0;
    const Fitted found = at(scales_of(best));
    for (int b = 0; b < kCount; ++b) {
      const float by = factor(best.q[b]);
      cross += by * found.cross.of[b];
      norm += by * by * found.norm.of[b];
    }
    State s = best;
    s.d = half(std::max(cross, 0.0f) * inverted(norm));
    lose(s);
    if (s.total < best.total) best = s;
  }

  void keep(const State &best) {
    d = best.d;
    const BlockValues scale = scales_of(best);
    const Fitted found = at(scale);
    for (int b = 0; b < kCount; ++b) {
      scales[b] = static_cast<uint8_t>(best.q[b]);
      if constexpr (kBook.shift == Shift::by_block) shifts[b] = found.side[b];
    }
    alignas(64) float lanes[kVectors];
    alignas(64) int32_t side[kVectors], code[kVectors];
    spread<B>(scale.of, lanes);
    for (int i = 0; i < kVectors; ++i) side[i] = -found.side[i % 16 * kCount / 16];
    for (int j = 0; j < kVectors; j += kLanes)
      store(code + j, code_at(load<Floats>(lanes + j), load<Ints>(side + j), j));
    if constexpr (kBook.is_signed) add_signs(code);
    for (int v = 0; v < kVectors; ++v) codes[v] = code[lane_of(v)];
  }

  // The best codes of lanes j .. at scales s, without signs. side: -1 where levels are shifted to the other side
  Ints code_at(Floats s, Ints side, int j) const {
    Ints best_code{};
    Floats least = splat(__builtin_inff());
    for (int k = 0; k < count_; ++k) {
      Floats cross = load<Floats>(codes_[0][k].cross + j), norm = load<Floats>(codes_[0][k].norm + j);
      Ints code = load<Ints>(codes_[0][k].code + j);
      if constexpr (kTried == 2) {
        cross = side ? load<Floats>(codes_[1][k].cross + j) : cross;
        norm = side ? load<Floats>(codes_[1][k].norm + j) : norm;
        code = side ? load<Ints>(codes_[1][k].code + j) : code;
      }
      const Floats here = s * (s * norm - (cross + cross));
      const Ints better = here < least;
      least = better ? here : least;
      best_code = better ? code : best_code;
    }
    return best_code;
  }

  // Adds the signs to codes [32]. Where the number of negative weights is odd, the sign is flipped that costs least.
  void add_signs(int32_t *codes) const {
    constexpr int kPoints = kBook.index_bits * kHalves<B>, kPerPoint = 16 / kBook.width;
    alignas(64) int32_t fields[kHalves<B>][kVectors];
    for (int half = 0; half < kHalves<B>; ++half)
      for (int j = 0; j < kVectors; ++j)
        fields[half][j] = kBook.points[codes[j] >> (half * kBook.index_bits) & (kBook.count - 1)];
    for (int j = 0; j < kVectors; j += kLanes) {
      Ints bits = load<Ints>(signs_ + j), cheapest{};
      if constexpr (kBook.even) {
        Floats least = splat(__builtin_inff());
        for (int i = 0; i < kVector; ++i) {
          const Ints field = load<Ints>(fields[i / kBook.width] + j) >> (i % kBook.width * kPerPoint);
          const Floats cost =
              load<Floats>(weight_[i] + j) * absolute(load<Floats>(x_[i] + j)) * look_up(kLevelTable<B>.of, field);
          const Ints better = cost < least;
          least = better ? cost : least;
          cheapest = better ? splat(1 << i) : cheapest;
        }
        bits ^= cheapest & load<Ints>(scan_.odd + j);
      }
      store(codes + j, load<Ints>(codes + j) | bits << kPoints);
    }
  }

  static constexpr int kTried = kBook.shift == Shift::by_block ? 2 : 1;
  // First scales that are scanned: their number, the first as a share of the guess, and from each to the next
  static constexpr int kFirst = kBook.shift != Shift::none ? 1 : kBook.width == 8 ? 4 : 3;
  static constexpr float kLow = kBook.shift != Shift::none ? 1.0f : kBook.width == 8 ? 0.75f : 0.92f;
  static constexpr float kStep = kBook.width == 8 ? 1.35f : 1.2f;
  static constexpr bool kPairs = kBook.width == 8 && kBook.shift == Shift::none;  // a scan takes two scales
  Scan<B> scan_;
  Codes codes_[kTried][kMostCodes];
  int count_ = 0;
  alignas(64) float weight_[kVector][kVectors], x_[kVector][kVectors];
  alignas(64) int32_t signs_[kVectors];
  BlockValues mass_, flat_;
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

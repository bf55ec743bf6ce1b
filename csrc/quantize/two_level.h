// Parameters of super-blocks of 256 weights, one super-block a lane; `_choose` of AffineK and SymmetricK in kquants.py.
#pragma once

#include "search.h"
#include "types.h"

namespace bitsmith::quantize::BITSMITH_ISA {

// Parameters of the groups of a tile. d, m: rounded to float16, but for ggml's reference rounding
// scales, mins: integers (or scale bytes) of each block of a group
struct Chosen {
  Floats d, m, scales[16], mins[16];
};

template <int P>
struct KState {
  Floats d, dmin, scales[P], mins[P], lost[P];

  // Whichever loses less; this one on a tie.
  void keep_better(const KState &other) {
    const Ints take = tree<P>([&](int p) { return other.lost[p]; }) < tree<P>([&](int p) { return lost[p]; });
    d = take ? other.d : d;
    dmin = take ? other.dmin : dmin;
    for (int p = 0; p < P; ++p) {
      scales[p] = take ? other.scales[p] : scales[p];
      mins[p] = take ? other.mins[p] : mins[p];
      lost[p] = take ? other.lost[p] : lost[p];
    }
  }
};

template <int P>
void give(const KState<P> &state, Chosen &chosen) {
  chosen.d = state.d;
  chosen.m = state.dmin;
  for (int p = 0; p < P; ++p) {
    chosen.scales[p] = state.scales[p];
    chosen.mins[p] = state.mins[p];
  }
}

// Q2_K, Q4_K, Q5_K. N: weights of a block; Top: largest integer of scales and mins; x, weight: [256] lanes
template <int Bits, int N, int Top, bool W>
struct AffineK {
  static constexpr int P = 256 / N;
  using L = Integers<0, (1 << Bits) - 1>;
  using State = KState<P>;

  const Floats *x, *weight;
  const Search &search;

  void choose(Chosen &chosen) const {
    Floats scale[P], low[P];
    for (int p = 0; p < P; ++p) {
      const Pair found = search_affine<(1 << Bits) - 1, N, W, true>(block(p), search.targets);
      scale[p] = found.scale;
      low[p] = -found.offset;
    }
    State best{};
    start(best, scale, low);
    for (int i = 0; i < search.rounds; ++i) {
      descend(best);
      refit(best);
    }
    give(best, chosen);
  }

 private:
  Block block(int p) const { return {x + p * N, W ? weight + p * N : nullptr}; }

  static Floats integer(Floats a) { return clip(rint(a), 0, Top); }

  Floats lost(const State &s, int p, Floats scale, Floats min) const {
    return grid_error<L, N, W>(block(p), s.d * scale, -(s.dmin * min));
  }

  void start(State &best, const Floats *scale, const Floats *low) const {
    bool first = true;
    for (float divisor : search.divisors) {
      for (float min_divisor : search.divisors) {
        State state;
        state.d = f16(maximum<P>(scale) / divisor);
        state.dmin = f16(maximum<P>(low) / min_divisor);
        for (int p = 0; p < P; ++p) {
          state.scales[p] = integer(scale[p] * inverse(state.d));
          state.mins[p] = integer(low[p] * inverse(state.dmin));
          state.lost[p] = lost(state, p, state.scales[p], state.mins[p]);
        }
        if (first)
          best = state;
        else
          best.keep_better(state);
        first = false;
      }
    }
  }

  void descend(State &state) const {
    const int reach = search.reach[0];
    for (int p = 0; p < P; ++p) {
      const Floats scales = state.scales[p], mins = state.mins[p];
      const Floats slope = middle(block(p), state.d * scales, -(state.dmin * mins)) * state.d * inverse(state.dmin);
      for (int step = -reach; step <= reach; ++step) {
        const Floats new_scales = clip(scales + static_cast<float>(step), 0, Top);
        const Floats valley = mins + rint((new_scales - scales) * slope);
        for (int aside = -1; aside <= 1; ++aside) {
          if (step == 0 && aside == 0) continue;
          const Floats new_mins = clip(valley + static_cast<float>(aside), 0, Top);
          const Floats new_lost = lost(state, p, new_scales, new_mins);
          const Ints better = new_lost < state.lost[p];
          state.scales[p] = better ? new_scales : state.scales[p];
          state.mins[p] = better ? new_mins : state.mins[p];
          state.lost[p] = better ? new_lost : state.lost[p];
        }
      }
    }
  }

  // The mean code.
  static BITSMITH_PASS Floats middle(Block b, Floats scale, Floats offset) {
    const Floats inverted = inverse(scale);
    const Floats sum = tree<N>(
        [&](int i) BITSMITH_INLINE_LAMBDA { return counted<W>(L::round((b.x[i] - offset) * inverted), b.weight, i); });
    return sum / weight_sum<N, W>(b);
  }

  static BITSMITH_PASS Sums<4> moments(Block b, Floats scale, Floats offset) {
    const Floats inverted = inverse(scale);
    return tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
      const Floats level = L::round((b.x[i] - offset) * inverted);
      const Floats mass = counted<W>(level, b.weight, i), weighted = counted<W>(b.x[i], b.weight, i);
      return Sums<4>{{mass * level, mass, weighted * level, weighted}};
    });
  }

  void refit(State &best) const {
    Sums<5> sums[P];
    for (int p = 0; p < P; ++p) {
      const Floats s = best.scales[p], m = best.mins[p];
      const auto [sum] = moments(block(p), best.d * s, -(best.dmin * m));
      sums[p] = {{s * s * sum[0], s * m * sum[1], m * m * weight_sum<N, W>(block(p)), s * sum[2], m * sum[3]}};
    }
    const auto [sum] = tree<P>([&](int p) { return sums[p]; });
    const Floats ss = sum[0], sm = sum[1], mm = sum[2], sx = sum[3], mx = sum[4];
    const Floats determinant = inverse(ss * mm - sm * sm);
    const Floats d = (mm * sx - sm * mx) * determinant, dmin = (sm * sx - ss * mx) * determinant;
    const Ints alone = (dmin < 0.0f) | (determinant == 0.0f);
    State state = best;
    state.d = f16(alone ? sx * inverse(ss) : d);
    state.dmin = f16(alone ? Floats{} : dmin);
    for (int p = 0; p < P; ++p) state.lost[p] = lost(state, p, state.scales[p], state.mins[p]);
    best.keep_better(state);
  }
};

// Q3_K, Q6_K, IQ4_XS. Low, High: range of the integer scales
template <class L, int N, int Low, int High, bool W>
struct SymmetricK {
  static constexpr int P = 256 / N;
  using State = KState<P>;

  const Floats *x, *weight;
  const Search &search;

  void choose(Chosen &chosen) const {
    Floats scale[P];
    for (int p = 0; p < P; ++p) scale[p] = search_scale<L, N, W>(block(p), search.targets);
    State best{};
    start(best, scale);
    for (int i = 0; i < search.rounds; ++i) {
      descend(best);
      refit(best);
    }
    give(best, chosen);
  }

 private:
  Block block(int p) const { return {x + p * N, W ? weight + p * N : nullptr}; }

  Floats lost(const State &s, int p, Floats scale) const { return grid_error<L, N, W>(block(p), s.d * scale); }

  void start(State &best, const Floats *scale) const {
    const Floats extreme = extreme_of(maximum<P>(scale), minimum<P>(scale));
    bool first = true;
    for (float divisor : search.divisors) {
      State state;
      state.d = f16(extreme / divisor);
      state.dmin = Floats{};
      for (int p = 0; p < P; ++p) {
        state.scales[p] = clip(rint(scale[p] * inverse(state.d)), Low, High);
        state.mins[p] = Floats{};
        state.lost[p] = lost(state, p, state.scales[p]);
      }
      if (first)
        best = state;
      else
        best.keep_better(state);
      first = false;
    }
  }

  void descend(State &state) const {
    const int reach = search.reach[0];
    for (int p = 0; p < P; ++p) {
      const Floats scales = state.scales[p];
      for (int step = -reach; step <= reach; ++step) {
        if (step == 0) continue;
        const Floats new_scales = clip(scales + static_cast<float>(step), Low, High);
        const Floats new_lost = lost(state, p, new_scales);
        const Ints better = new_lost < state.lost[p];
        state.scales[p] = better ? new_scales : state.scales[p];
        state.lost[p] = better ? new_lost : state.lost[p];
      }
    }
  }

  static BITSMITH_PASS Sums<2> moments(Block b, Floats scale) {
    const Floats inverted = inverse(scale);
    return tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
      const Floats level = L::round(b.x[i] * inverted), mass = counted<W>(level, b.weight, i);
      return Sums<2>{{mass * b.x[i], mass * level}};
    });
  }

  void refit(State &best) const {
    Sums<2> sums[P];
    for (int p = 0; p < P; ++p) {
      const Floats s = best.scales[p];
      const auto [sum] = moments(block(p), best.d * s);
      sums[p] = {{s * sum[0], s * s * sum[1]}};
    }
    const auto [sum] = tree<P>([&](int p) { return sums[p]; });
    State state = best;
    state.d = f16(sum[0] * inverse(sum[1]));
    for (int p = 0; p < P; ++p) state.lost[p] = lost(state, p, state.scales[p]);
    best.keep_better(state);
  }
};

}  // namespace bitsmith::quantize::BITSMITH_ISA

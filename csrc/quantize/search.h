// Searches for scales and offsets. Each lane holds one block. scale_search.py has functions of the same names; results
// are equal to the bit.
#pragma once

#include <vector>

#include "levels.h"

namespace bitsmith::quantize::BITSMITH_ISA {

#define BITSMITH_PASS __attribute__((noinline)) inline  // one pass over a block: worth a call, and compiled once

// x, weight: [N] lanes; weight is read where W says so.
struct Block {
  const Floats *x, *weight;
};

template <bool W>
BITSMITH_INLINE Floats counted(Floats a, const Floats *weight, int i) {
  if constexpr (W) return a * weight[i];
  return a;
}

template <int N, bool W>
BITSMITH_INLINE Floats weight_sum(Block b) {
  if constexpr (W) return tree<N>([&](int i) { return b.weight[i]; });
  return splat(static_cast<float>(N));
}

template <class L, int N, bool W>
BITSMITH_PASS Floats grid_error(Block b, Floats scale) {
  const Floats inverted = inverse(scale);
  return tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
    const Floats lost = L::round(b.x[i] * inverted) * scale - b.x[i];
    return counted<W>(lost * lost, b.weight, i);
  });
}

template <class L, int N, bool W>
BITSMITH_PASS Floats grid_error(Block b, Floats scale, Floats offset) {
  const Floats inverted = inverse(scale);
  return tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
    const Floats lost = L::round((b.x[i] - offset) * inverted) * scale + offset - b.x[i];
    return counted<W>(lost * lost, b.weight, i);
  });
}

struct ScaleScore {
  Floats scale, score;
};

// The best scale for the levels that unit * step rounds to, and the error it takes away.
template <class L, int N, bool W>
BITSMITH_PASS ScaleScore least_squares_scale(const Floats *unit, const Floats *weighted, const Floats *weight,
                                             Floats step) {
  const auto sums = tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
    const Floats level = L::round(unit[i] * step);
    return Sums<2>{{weighted[i] * level, counted<W>(level * level, weight, i)}};
  });
  const Floats scale = sums.sum[0] * inverse(sums.sum[1]);
  return {scale, scale * sums.sum[0]};
}

template <int N>
BITSMITH_INLINE Floats maximum(const Floats *x) {
  Floats high = x[0];
  for (int i = 1; i < N; ++i) high = max(x[i], high);
  return high;
}

template <int N>
BITSMITH_INLINE Floats minimum(const Floats *x) {
  Floats low = x[0];
  for (int i = 1; i < N; ++i) low = min(x[i], low);
  return low;
}

// The one of largest magnitude; of two equal ones, the positive.
BITSMITH_INLINE Floats extreme_of(Floats high, Floats low) { return high >= -low ? high : low; }

template <class L, int N, bool W>
Floats search_scale(Block b, const std::vector<float> &targets) {
  Floats unit[N], product[W ? N : 1];
  const Floats extreme = extreme_of(maximum<N>(b.x), minimum<N>(b.x)), inverted = inverse(extreme);
  for (int i = 0; i < N; ++i) {
    unit[i] = b.x[i] * inverted;
    if constexpr (W) product[i] = unit[i] * b.weight[i];
  }
  const Floats *weighted = W ? product : unit;
  Floats best{}, gain = splat(-1.0f);
  const auto attempt = [&](Floats step) {
    const auto [scale, score] = least_squares_scale<L, N, W>(unit, weighted, b.weight, step);
    const Ints better = score > gain;
    best = better ? scale : best;
    gain = better ? score : gain;
  };
  for (float target : targets) attempt(splat(target));
  for (int i = 0; i < 2; ++i) attempt(inverse(best));
  return best * extreme + 0.0f;  // no -0
}

struct Pair {
  Floats scale, offset, score;
};

// Finds s and m that minimise the sum of w (u - s l - m)^2 for given levels l. Holds the sums that do not depend on l.
template <int N, bool W>
struct LeastSquaresPair {
  const Floats *unit, *weighted, *weight;
  Floats total, first, limit;

  // From the three sums that depend on l. Limited: the offset may not exceed the limit.
  template <bool Limited>
  BITSMITH_INLINE Pair solve(Floats cross, Floats mass, Floats square) const {
    const Floats determinant = inverse(total * square - mass * mass);
    Floats scale = (total * cross - first * mass) * determinant;
    Floats offset = (square * first - mass * cross) * determinant;
    if constexpr (Limited) {
      const Ints over = (offset > limit) | (determinant == 0.0f);
      offset = over ? limit : offset;
      scale = over ? (cross - offset * mass) * inverse(square) : scale;
    }
    Floats gain = 2.0f * (scale * cross + offset * first) - scale * scale * square;
    gain = gain - 2.0f * scale * offset * mass - offset * offset * total;
    return {scale, offset, scale > 0.0f ? gain : splat(-1.0f)};
  }

  // For the levels of (unit - start) * step.
  template <class L, bool Limited, bool Shifted>
  BITSMITH_PASS Pair attempt(Floats step, Floats start) const {
    const auto sums = tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
      const Floats level = L::round((Shifted ? unit[i] - start : unit[i]) * step);
      const Floats mass = counted<W>(level, weight, i);
      return Sums<3>{{weighted[i] * level, mass, mass * level}};
    });
    return solve<Limited>(sums.sum[0], sums.sum[1], sums.sum[2]);
  }
};

// Scale and offset of levels 0 .. Top; Limited: the offset may not exceed 0.
template <int Top, int N, bool W, bool Limited>
Pair search_affine(Block b, const std::vector<float> &targets) {
  using L = Integers<0, Top>;
  Floats unit[N], product[W ? N : 1];
  Floats low = minimum<N>(b.x);
  const Floats high = maximum<N>(b.x);
  if constexpr (Limited) low = min(Floats{}, low);
  const Floats extent = high - low, inverted = inverse(extent);
  for (int i = 0; i < N; ++i) {
    unit[i] = (b.x[i] - low) * inverted;
    if constexpr (W) product[i] = unit[i] * b.weight[i];
  }
  const Floats *weighted = W ? product : unit;
  const Floats first = tree<N>([&](int i) { return weighted[i]; });
  const LeastSquaresPair<N, W> pair{unit, weighted, b.weight, weight_sum<N, W>(b), first, (0.0f - low) * inverted};
  Pair best = pair.template attempt<L, Limited, false>(splat(static_cast<float>(Top)), Floats{});
  const auto keep = [&](const Pair &found) {
    const Ints better = found.score > best.score;
    best = {better ? found.scale : best.scale, better ? found.offset : best.offset, better ? found.score : best.score};
  };
  for (float target : targets) keep(pair.template attempt<L, Limited, false>(splat(target), Floats{}));
  for (int i = 0; i < 2; ++i) keep(pair.template attempt<L, Limited, true>(inverse(best.scale), best.offset));
  return {best.scale * extent + 0.0f, best.offset * extent + low, best.score};  // no scale of -0
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

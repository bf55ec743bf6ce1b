// Parameters of blocks with a scale of their own, one block a lane; `_choose` of the formats in ggml_simple.py, iq4.py
// and microscale.py, and the scales of ggml's reference rounding.
#pragma once

#include <algorithm>

#include "two_level.h"

namespace bitsmith::quantize::BITSMITH_ISA {

template <class L, int N, bool W>
BITSMITH_PASS Sums<2> scale_moments(Block b, Floats scale) {
  const Floats inverted = inverse(scale);
  return tree<N>([&](int i) BITSMITH_INLINE_LAMBDA {
    const Floats level = L::round(b.x[i] * inverted), mass = counted<W>(level, b.weight, i);
    return Sums<2>{{mass * b.x[i], mass * level}};
  });
}

// Q4_0, Q5_0, IQ4_NL, and with other blocks Q1_0, Q2_0, TQ1_0, TQ2_0
template <class L, bool W, int N = 32>
void choose_scale(Block b, const Search &search, Chosen &chosen) {
  const Floats d = f16(search_scale<L, N, W>(b, search.targets));
  const auto [sum] = scale_moments<L, N, W>(b, d);
  const Floats refit = f16(sum[0] * inverse(sum[1]));
  chosen.d = grid_error<L, N, W>(b, refit) < grid_error<L, N, W>(b, d) ? refit : d;
}

// Q4_1, Q5_1
template <int Bits, bool W>
struct AffineBlocks {
  using L = Integers<0, (1 << Bits) - 1>;

  static void choose(Block b, const Search &search, Chosen &chosen) {
    const Pair found = search_affine<(1 << Bits) - 1, 32, W, false>(b, search.targets);
    Floats d = f16(found.scale), m = f16(found.offset);
    Floats lost = grid_error<L, 32, W>(b, d, m);
    const Floats total = weight_sum<32, W>(b);
    for (int i = 0; i < search.rounds; ++i) {
      Floats level[32];
      const Floats new_m = f16(round_and_sum_rest(b, d, m, level) / total);
      const auto [sum] = scale_sums(b, new_m, level);
      const Floats new_d = f16(sum[0] * inverse(sum[1]));
      const Floats new_lost = grid_error<L, 32, W>(b, new_d, new_m);
      const Ints better = new_lost < lost;
      d = better ? new_d : d;
      m = better ? new_m : m;
      lost = better ? new_lost : lost;
    }
    chosen.d = d;
    chosen.m = m;
  }

 private:
  static BITSMITH_PASS Floats round_and_sum_rest(Block b, Floats d, Floats m, Floats *level) {
    const Floats inverted = inverse(d);
    for (int i = 0; i < 32; ++i) level[i] = L::round((b.x[i] - m) * inverted);
    return tree<32>([&](int i) BITSMITH_INLINE_LAMBDA { return counted<W>(b.x[i] - level[i] * d, b.weight, i); });
  }

  static BITSMITH_PASS Sums<2> scale_sums(Block b, Floats m, const Floats *level) {
    return tree<32>([&](int i) BITSMITH_INLINE_LAMBDA {
      const Floats mass = counted<W>(level[i], b.weight, i);
      return Sums<2>{{mass * (b.x[i] - m), mass * level[i]}};
    });
  }
};

// MXFP4 and NVFP4: N weights share a scale byte.
template <int N, bool W>
Floats choose_byte(Block b, const Search &search) {
  const int top = static_cast<int>(search.scales.size()) - 1;
  Floats largest{};
  for (int i = 0; i < N; ++i) largest = max(absolute(b.x[i]), largest);
  largest /= 12.0f;
  Ints start;
  for (int i = 0; i < kLanes; ++i) {
    start[i] = static_cast<int>(std::lower_bound(search.scales.begin(), search.scales.end(), largest[i]) -
                                search.scales.begin());
  }
  const auto lost_of = [&](Ints byte) {
    Floats scale;
    for (int i = 0; i < kLanes; ++i) scale[i] = search.scales[byte[i]];
    return grid_error<E2m1, N, W>(b, scale);
  };
  const auto bounded = [&](Ints byte) {
    byte = byte < 0 ? Ints{} : byte;
    return byte > top ? Ints{} + top : byte;
  };
  Ints best = bounded(start);
  Floats lost = lost_of(best);
  for (int step : search.reach) {
    const Ints byte = bounded(start + step);
    const Floats found = lost_of(byte);
    const Ints better = found < lost;
    best = better ? byte : best;
    lost = better ? found : lost;
  }
  return convert<Floats>(best);
}

BITSMITH_INLINE Floats largest_magnitude(const Floats *x) {
  Floats largest = absolute(x[0]);
  for (int i = 1; i < 32; ++i) largest = max(absolute(x[i]), largest);
  return largest;
}

// The float32 scales that ggml's reference rounds codes from; here x has its -0, and was not clipped.
inline void reference_scale(Type type, const Floats *x, Chosen &chosen) {
  if (type == Type::q8_0) {
    chosen.d = largest_magnitude(x) / 127.0f;
    return;
  }
  if (type == Type::q4_0 || type == Type::q5_0) {
    Floats size = absolute(x[0]), extreme = x[0];  // the first of equals
    for (int i = 1; i < 32; ++i) {
      const Ints larger = absolute(x[i]) > size;
      size = larger ? absolute(x[i]) : size;
      extreme = larger ? x[i] : extreme;
    }
    extreme = extreme != 0.0f ? extreme : Floats{};
    chosen.d = extreme / (type == Type::q4_0 ? -8.0f : -16.0f);
    return;
  }
  Floats low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = min(x[i], low);
    high = max(x[i], high);
  }
  chosen.d = (high - low) / (type == Type::q4_1 ? 15.0f : 31.0f);
  chosen.m = low;
}

}  // namespace bitsmith::quantize::BITSMITH_ISA

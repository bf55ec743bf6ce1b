// What is done to single rows of float32: rounding to int8, norms, activation.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "exponential.h"
#include "products.h"
#include "scaled.h"

namespace bitsmith::BITSMITH_ISA {

namespace {

// Codes of 15 bits: 128 * upper + lower.
BITSMITH_INLINE void store_fine(Floats value, int8_t *upper_to, int8_t *lower_to, Ints &sum) {
  const Ints upper = rint_to_ints(value), lower = rint_to_ints((value - convert<Floats>(upper)) * 128.0f);
  store_codes(upper_to, upper);
  store_codes(lower_to, lower);
  sum += (upper << 7) + lower;
}

// What a block's codes add up to; sums: those of the first and of the second 16.
BITSMITH_INLINE void put_sums(RoundedBlock &to, const Ints (&sums)[2]) {
  for (int i = 0; i < 2; ++i) {
    to.negated_16[i] = -sum(sums[i]);
    to.halves[i] = -to.scale * static_cast<float>(to.negated_16[i]);
  }
  to.negated = to.negated_16[0] + to.negated_16[1];
  to.sum = to.halves[0] + to.halves[1];
}

// The sums of 256 columns: of every 16, then of every 32.
BITSMITH_INLINE void put_wide(const float *wide, FineSums &group) {
  const Scaled all = scaled(wide);
  Ints unused{};
  for (int i = 0; i < 32 / kLanes; ++i)
    store_fine(all.values[i], group.upper + kLanes * i, group.lower + kLanes * i, unused);
  group.scale = all.step / 128.0f;
}

// gate = at(gate, up)
template <class Gate>
BITSMITH_INLINE void gated(float *gate, const float *up, int n, const Gate &at) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, at(load<Floats>(gate + i), load<Floats>(up + i)));
  if (i == n) return;
  float g[kLanes] = {}, u[kLanes] = {};
  std::memcpy(g, gate + i, (n - i) * sizeof(float));
  std::memcpy(u, up + i, (n - i) * sizeof(float));
  store(g, at(load<Floats>(g), load<Floats>(u)));
  std::memcpy(gate + i, g, (n - i) * sizeof(float));
}

}  // namespace

void round_row(const float *x, int cols, RoundedBlock *out) {
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    const Scaled in = scaled(x);
    RoundedBlock &to = out[block];
    Ints sums[2] = {};
    for (int i = 0; i < 32 / kLanes; ++i) {
      const Ints codes = rint_to_ints(in.values[i]);
      store_codes(to.codes + kLanes * i, codes);
      sums[kLanes * i / 16] += codes;
    }
    to.scale = in.step;
    put_sums(to, sums);
  }
}

void round_fine(const float *x, int cols, FineBlock *out, FineSums *sums) {
  alignas(64) float wide[32] = {};  // sums of 16 columns, then of 32
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    const Scaled in = scaled(x);
    FineBlock &to = out[block];
    Ints codes[2] = {};
    for (int i = 0; i < 32 / kLanes; ++i)
      store_fine(in.values[i], to.upper + kLanes * i, to.lower + kLanes * i, codes[kLanes * i / 16]);
    to.scale = in.step / 128.0f;
    const int at = block % 8;
    for (int i = 0; i < 2; ++i) {
      to.negated_16[i] = -sum(codes[i]);
      wide[2 * at + i] = -to.scale * static_cast<float>(to.negated_16[i]);
    }
    to.negated = to.negated_16[0] + to.negated_16[1];
    to.sum = wide[16 + at] = wide[2 * at] + wide[2 * at + 1];
    if (at == 7 && cols % 256 == 0) put_wide(wide, sums[block / 8]);
  }
}

int round_mixed(const float *x, int cols, float threshold, RoundedBlock *out, int *large) {
  constexpr float kMost = 65504.0f;
  const int blocks = (cols + 31) / 32;
  float *rest = scratch<float, 14>(static_cast<size_t>(blocks) * 32);
  Floats most{}, total{};
  int found = 0;
  for (int k = 0; k < 32 * blocks; k += kLanes) {
    alignas(64) float own[kLanes] = {};
    if (k < cols) std::memcpy(own, x + k, std::min(kLanes, cols - k) * sizeof(float));
    alignas(64) uint16_t halves[kLanes];
    store_half(halves, clip(load<Floats>(own), -kMost, kMost));
    const Floats half = load_half(halves), size = absolute(half);
    const Ints beyond = size >= splat(threshold);
    const Floats kept = as<Floats>(as<Ints>(half) & ~beyond);
    most = max(most, absolute(kept));
    total += kept;
    store(rest + k, kept);
    if (sum(beyond) == 0) continue;
    for (int i = 0; i < kLanes; ++i)
      if (beyond[i]) large[found++] = k + i;
  }
  const float absmax = largest(most), check = sum(total);
  const float inverse = 1.0f / (absmax > 0 ? absmax : 1.0f) * 127.0f, step = absmax / 127.0f + (check - check);
  for (int block = 0; block < blocks; ++block) {
    RoundedBlock &to = out[block];
    Ints sums[2] = {};
    for (int k = 0; k < 32; k += kLanes) {
      const Floats value = load<Floats>(rest + 32 * block + k) * inverse;
      const Ints codes = rint_to_ints(min(max(value, splat(-127.0f)), splat(127.0f)));
      store_codes(to.codes + k, codes);
      sums[k / 16] += codes;
    }
    to.scale = step;
    put_sums(to, sums);
  }
  return found;
}

void to_fine(const RoundedBlock *x, int cols, FineBlock *out, FineSums *sums) {
  alignas(64) float wide[32] = {};
  for (int block = 0; block < cols / 32; ++block) {
    const RoundedBlock &from = x[block];
    FineBlock &to = out[block];
    std::memset(to.upper, 0, sizeof to.upper);
    std::memcpy(to.lower, from.codes, sizeof to.lower);
    to.scale = from.scale, to.sum = from.sum, to.negated = from.negated;
    const int at = block % 8;
    for (int i = 0; i < 2; ++i) to.negated_16[i] = from.negated_16[i], wide[2 * at + i] = from.halves[i];
    wide[16 + at] = from.sum;
    if (at == 7 && cols % 256 == 0) put_wide(wide, sums[block / 8]);
  }
}

void rms_norm(const float *x, const float *weight, int n, float eps, float *y) {
  Floats squares{};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) squares = fma(load<Floats>(x + i), load<Floats>(x + i), squares);
  float total = sum(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(n) + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) store(y + i, load<Floats>(x + i) * scale * load<Floats>(weight + i));
  for (; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

void swiglu(float *gate, const float *up, int n) {
  gated(gate, up, n, [](Floats g, Floats u) { return g / (1.0f + exponential(-g)) * u; });
}

// gelu(x) = x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)
void geglu(float *gate, const float *up, int n) {
  gated(gate, up, n, [](Floats g, Floats u) {
    const Floats cubed = fma(g * g, g * 0.044715f, g);
    return g / (1.0f + exponential(cubed * -1.5957691216f)) * u;
  });
}

void clamped_swiglu(float *gate, const float *up, int n) {
  constexpr float kMost = 7.0f, kSlope = 1.702f;
  gated(gate, up, n, [](Floats g, Floats u) {
    const Floats bounded = min(splat(kMost), g);
    return bounded / (1.0f + exponential(bounded * -kSlope)) * (clip(u, -kMost, kMost) + 1.0f);
  });
}

}  // namespace bitsmith::BITSMITH_ISA

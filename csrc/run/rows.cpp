// What is done to single rows of float32: rounding to int8, norms, activation.
#include <cmath>

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
    for (int i = 0; i < 2; ++i) {
      to.negated_16[i] = -sum(sums[i]);
      to.halves[i] = -in.step * static_cast<float>(to.negated_16[i]);
    }
    to.negated = to.negated_16[0] + to.negated_16[1];
    to.sum = to.halves[0] + to.halves[1];
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
    if (at < 7 || cols % 256) continue;
    const Scaled all = scaled(wide);
    FineSums &group = sums[block / 8];
    Ints unused{};
    for (int i = 0; i < 32 / kLanes; ++i)
      store_fine(all.values[i], group.upper + kLanes * i, group.lower + kLanes * i, unused);
    group.scale = all.step / 128.0f;
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

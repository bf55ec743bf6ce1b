// What is done to single rows of float32: rounding to int8, norms, activation.
#include <cmath>

#include "exponential.h"
#include "products.h"

namespace bitsmith::BITSMITH_ISA {

namespace {

// Codes of NaN and infinities are bounded too; their scale tells of them.
BITSMITH_INLINE F bounded(F x) { return min(max(x, broadcast(-127.0f)), broadcast(127.0f)); }

}  // namespace

void round_row(const float *x, int cols, RoundedBlock *out) {
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    RoundedBlock &to = out[block];
    F v[32 / L], most{}, total{};
    for (int i = 0; i < 32 / L; ++i) {
      v[i] = load<F>(x + L * i);
      most = max(most, magnitude(v[i]));
      total += v[i];
    }
    const float absmax = largest(most), check = sum(total);
    to.scale = absmax / 127.0f + (check - check);  // NaN and infinities must not vanish in the rounding
    const float inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
    I sums[2] = {};
    for (int i = 0; i < 32 / L; ++i) {
      const I codes = nearest(bounded(v[i] * inverse));
      store(to.codes + L * i, __builtin_convertvector(codes, S8));
      sums[L * i / 16] += codes;
    }
    for (int i = 0; i < 2; ++i) {
      const int32_t codes = sum(sums[i]);
      to.negated_16[i] = -codes;
      to.halves[i] = to.scale * static_cast<float>(codes);
    }
    to.negated = to.negated_16[0] + to.negated_16[1];
    to.sum = to.halves[0] + to.halves[1];
    to.unused = 0;
  }
}

void round_fine(const float *x, int cols, FineBlock *out) {
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    FineBlock &to = out[block];
    F v[32 / L], most{}, total{};
    for (int i = 0; i < 32 / L; ++i) {
      v[i] = load<F>(x + L * i);
      most = max(most, magnitude(v[i]));
      total += v[i];
    }
    const float absmax = largest(most), check = sum(total);
    to.scale = absmax / 16256.0f + (check - check);
    const float inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
    I sums[2] = {};
    for (int i = 0; i < 32 / L; ++i) {
      const F scaled = bounded(v[i] * inverse);
      const I upper = nearest(scaled), lower = nearest((scaled - to_float(upper)) * 128.0f);
      store(to.upper + L * i, __builtin_convertvector(upper, S8));
      store(to.lower + L * i, __builtin_convertvector(lower, S8));
      sums[L * i / 16] += (upper << 7) + lower;
    }
    for (int i = 0; i < 2; ++i) {
      const int32_t codes = sum(sums[i]);
      to.negated_16[i] = -codes;
      to.halves[i] = to.scale * static_cast<float>(codes);
    }
    to.negated = to.negated_16[0] + to.negated_16[1];
    to.sum = to.halves[0] + to.halves[1];
  }
}

void rms_norm(const float *x, const float *weight, int n, float eps, float *y) {
  F squares{};
  int i = 0;
  for (; i + L <= n; i += L) squares = fma(load<F>(x + i), load<F>(x + i), squares);
  float total = sum(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(n) + eps);
  for (i = 0; i + L <= n; i += L) store(y + i, load<F>(x + i) * scale * load<F>(weight + i));
  for (; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

void swiglu(float *gate, const float *up, int n) {
  const auto at = [](F g, F u) { return g / (1.0f + exponential(-g)) * u; };
  int i = 0;
  for (; i + L <= n; i += L) store(gate + i, at(load<F>(gate + i), load<F>(up + i)));
  if (i == n) return;
  float g[L] = {}, u[L] = {};
  std::memcpy(g, gate + i, (n - i) * sizeof(float));
  std::memcpy(u, up + i, (n - i) * sizeof(float));
  store(g, at(load<F>(g), load<F>(u)));
  std::memcpy(gate + i, g, (n - i) * sizeof(float));
}

}  // namespace bitsmith::BITSMITH_ISA

// What is done to single rows of float32: rounding to int8, norms, activation.
#include <cmath>

#include "exponential.h"
#include "products.h"
#include "scaled.h"

namespace bitsmith::BITSMITH_ISA {

namespace {

// What products need besides the codes. sums: of the codes of the first and the second 16
template <class Block>
BITSMITH_INLINE void set_sums(Block &to, float scale, const I (&sums)[2]) {
  to.scale = scale;
  for (int i = 0; i < 2; ++i) {
    const int32_t codes = sum(sums[i]);
    to.negated_16[i] = -codes;
    to.halves[i] = scale * static_cast<float>(codes);
  }
  to.negated = to.negated_16[0] + to.negated_16[1];
  to.sum = to.halves[0] + to.halves[1];
}

}  // namespace

void round_row(const float *x, int cols, RoundedBlock *out) {
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    const Scaled in = scaled(x);
    I sums[2] = {};
    for (int i = 0; i < 32 / L; ++i) {
      const I codes = nearest(in.values[i]);
      store_codes(out[block].codes + L * i, codes);
      sums[L * i / 16] += codes;
    }
    set_sums(out[block], in.step, sums);
  }
}

void round_fine(const float *x, int cols, FineBlock *out) {
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    const Scaled in = scaled(x);
    I sums[2] = {};
    for (int i = 0; i < 32 / L; ++i) {
      const I upper = nearest(in.values[i]), lower = nearest((in.values[i] - to_float(upper)) * 128.0f);
      store_codes(out[block].upper + L * i, upper);
      store_codes(out[block].lower + L * i, lower);
      sums[L * i / 16] += (upper << 7) + lower;
    }
    set_sums(out[block], in.step / 128.0f, sums);
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

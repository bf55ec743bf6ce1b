// What is done to single rows of float32: rounding to int8, norms, activation.
#include <cmath>

#include "exponential.h"
#include "products.h"
#include "scaled.h"

namespace bitsmith::BITSMITH_ISA {

namespace {

// What products need besides the codes. sums: of the codes of the first and the second 16
template <class Block>
BITSMITH_INLINE void set_sums(Block &to, float scale, const Ints (&sums)[2]) {
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
    Ints sums[2] = {};
    for (int i = 0; i < 32 / kLanes; ++i) {
      const Ints codes = rint_to_ints(in.values[i]);
      store_codes(out[block].codes + kLanes * i, codes);
      sums[kLanes * i / 16] += codes;
    }
    set_sums(out[block], in.step, sums);
  }
}

void round_fine(const float *x, int cols, FineBlock *out) {
  for (int block = 0; block < cols / 32; ++block, x += 32) {
    const Scaled in = scaled(x);
    Ints sums[2] = {};
    for (int i = 0; i < 32 / kLanes; ++i) {
      const Ints upper = rint_to_ints(in.values[i]),
                 lower = rint_to_ints((in.values[i] - convert<Floats>(upper)) * 128.0f);
      store_codes(out[block].upper + kLanes * i, upper);
      store_codes(out[block].lower + kLanes * i, lower);
      sums[kLanes * i / 16] += (upper << 7) + lower;
    }
    set_sums(out[block], in.step / 128.0f, sums);
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
  const auto at = [](Floats g, Floats u) { return g / (1.0f + exponential(-g)) * u; };
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, at(load<Floats>(gate + i), load<Floats>(up + i)));
  if (i == n) return;
  float g[kLanes] = {}, u[kLanes] = {};
  std::memcpy(g, gate + i, (n - i) * sizeof(float));
  std::memcpy(u, up + i, (n - i) * sizeof(float));
  store(g, at(load<Floats>(g), load<Floats>(u)));
  std::memcpy(gate + i, g, (n - i) * sizeof(float));
}

}  // namespace bitsmith::BITSMITH_ISA

// The gated delta rule token by token, and the short convolution before it.
#include "exponential.h"
#include "products.h"

namespace bitsmith::BITSMITH_ISA {

namespace {

// `N` vectors of the columns of a state, all tokens one after the other: the columns stay in the first-level cache.
// S = a S + k u^T with u = b (v - a S^T k), and the output S^T q.
template <int N>
BITSMITH_INLINE void columns(const Recurrence &task, int at) {
  float *state = task.state + at;
  const int rows = task.key_dim, stride = task.value_dim;
  for (int token = 0; token < task.count; ++token) {
    const float *q = task.q + token * task.key_stride, *k = task.k + token * task.key_stride;
    const float kept = task.kept[token * task.gate_stride], rate = task.rate[token * task.gate_stride];
    Floats known[N] = {}, out[N] = {};
    for (int i = 0; i < rows; ++i)
      for (int n = 0; n < N; ++n) known[n] = fma(load<Floats>(state + i * stride + n * kLanes), splat(k[i]), known[n]);
    for (int n = 0; n < N; ++n)
      known[n] = (load<Floats>(task.v + token * task.value_stride + at + n * kLanes) - known[n] * kept) * rate;
    for (int i = 0; i < rows; ++i)
      for (int n = 0; n < N; ++n) {
        float *own = state + i * stride + n * kLanes;
        const Floats now = fma(known[n], splat(k[i]), load<Floats>(own) * kept);
        store(own, now);
        out[n] = fma(now, splat(q[i]), out[n]);
      }
    for (int n = 0; n < N; ++n) store(task.out + token * task.out_stride + at + n * kLanes, out[n]);
  }
}

void column(const Recurrence &task, int at) {
  float *state = task.state + at;
  for (int token = 0; token < task.count; ++token) {
    const float *q = task.q + token * task.key_stride, *k = task.k + token * task.key_stride;
    const float kept = task.kept[token * task.gate_stride], rate = task.rate[token * task.gate_stride];
    float known = 0.0f, out = 0.0f;
    for (int i = 0; i < task.key_dim; ++i) known += state[i * task.value_dim] * k[i];
    known = (task.v[token * task.value_stride + at] - known * kept) * rate;
    for (int i = 0; i < task.key_dim; ++i) {
      float &own = state[i * task.value_dim];
      own = own * kept + known * k[i];
      out += own * q[i];
    }
    task.out[token * task.out_stride + at] = out;
  }
}

}  // namespace

void recur(const Recurrence &task) {
  int at = 0;
  for (; at + 4 * kLanes <= task.value_dim; at += 4 * kLanes) columns<4>(task, at);
  for (; at + kLanes <= task.value_dim; at += kLanes) columns<1>(task, at);
  for (; at < task.value_dim; ++at) column(task, at);
}

void convolve(const float *const *inputs, const float *taps, int count, int n, float *y) {
  int i = 0;
  const auto silu = [](Floats x) { return x / (1.0f + exponential(-x)); };
  for (; i + kLanes <= n; i += kLanes) {
    Floats total{};
    for (int tap = 0; tap < count; ++tap)
      total = fma(load<Floats>(inputs[tap] + i), load<Floats>(taps + static_cast<size_t>(tap) * n + i), total);
    store(y + i, silu(total));
  }
  for (; i < n; ++i) {
    float total = 0.0f;
    for (int tap = 0; tap < count; ++tap) total += inputs[tap][i] * taps[static_cast<size_t>(tap) * n + i];
    y[i] = silu(splat(total))[0];
  }
}

void gate_by(const float *gate, float *x, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes)
    store(x + i, load<Floats>(x + i) / (1.0f + exponential(-load<Floats>(gate + i))));
  for (; i < n; ++i) x[i] /= 1.0f + exponential(splat(-gate[i]))[0];
}

}  // namespace bitsmith::BITSMITH_ISA

// Operations of forward passes without a cache on arrays of Python's: those of calibration.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "kernels.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitsmith {
namespace {

constexpr int kQueries = 256;  // positions of a piece of attention
constexpr int kRowsTogether = 64;

using Heads4 = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;  // [batch, heads, n, head_dim], any strides
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out3 = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Out4 = nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

const Kernels &kernels_named(const std::string &isa) { return kernels(isa.empty() ? chosen_isa() : isa_named(isa)); }

[[noreturn]] void refuse(const char *what) { throw std::invalid_argument(what); }

// One position of a head, [head_dim], times a factor.
void copy_head(const Heads4 &x, size_t batch, size_t head, size_t at, float factor, float *to) {
  const float *from = x.data() + static_cast<int64_t>(batch) * x.stride(0) + static_cast<int64_t>(head) * x.stride(1) +
                      static_cast<int64_t>(at) * x.stride(2);
  const int64_t step = x.stride(3);
  for (size_t i = 0; i < x.shape(3); ++i) to[i] = from[static_cast<int64_t>(i) * step] * factor;
}

// How scores are made; see `Attention` of kernels.h.
struct Scores {
  float factor, softcap;
  int window;
  const float *sinks;
};

// Queries of the heads that share the keys and values `head` of a sequence.
void attend(const Kernels &kernels, const Heads4 &q, const Heads4 &k, const Heads4 &v, const Scores &how, size_t batch,
            size_t head, const Out3 &out) {
  const size_t n = q.shape(2), group = q.shape(1) / k.shape(1), head_dim = q.shape(3),
               width = (head_dim + 31) / 32 * 32;
  thread_local std::vector<float> held;
  held.assign((group + 2) * n * width, 0.0f);
  float *keys = held.data(), *values = keys + n * width, *queries = values + n * width;
  for (size_t at = 0; at < n; ++at) {
    copy_head(k, batch, head, at, 1.0f, keys + at * width);
    copy_head(v, batch, head, at, 1.0f, values + at * width);
    for (size_t i = 0; i < group; ++i)
      copy_head(q, batch, head * group + i, at, how.factor, queries + (at * group + i) * width);
  }
  Attention task{};
  task.queries = queries;
  task.group = static_cast<int>(group);
  task.width = static_cast<int>(width);
  task.head_dim = static_cast<int>(head_dim);
  task.window = how.window;
  task.softcap = how.softcap;
  task.sinks = how.sinks ? how.sinks + head * group : nullptr;
  task.keys = {reinterpret_cast<const uint8_t *>(keys), CacheType::f32};
  task.values = {reinterpret_cast<const uint8_t *>(values), CacheType::f32};
  task.out_stride = out.shape(2);
  task.out = out.data() + batch * n * task.out_stride + head * group * head_dim;
  for (size_t first = 0; first < n; first += kQueries) {
    task.first = static_cast<int>(first);
    task.count = static_cast<int>(std::min<size_t>(kQueries, n - first));
    kernels.attend(task);
  }
}

void causal_attention(const Heads4 &q, const Heads4 &k, const Heads4 &v, Out3 out, float scale, int window,
                      float softcap, const std::optional<Vector> &sinks, int threads, const std::string &isa) {
  const size_t batch = q.shape(0), heads = q.shape(1), n = q.shape(2), head_dim = q.shape(3), shared = k.shape(1);
  for (const Heads4 *each : {&k, &v}) {
    if (each->shape(0) != batch || each->shape(1) != shared || each->shape(2) != n || each->shape(3) != head_dim)
      refuse("keys and values do not have the shape of the queries");
  }
  if (!shared || heads % shared || !head_dim || n > 1u << 24) refuse("the heads do not share keys and values evenly");
  if (out.shape(0) != batch || out.shape(1) != n || out.shape(2) != heads * head_dim)
    refuse("the output of attention does not fit its queries");
  if (sinks && sinks->shape(0) != heads) refuse("there is one sink a head");
  if (window < 0) refuse("a window is 0 or more positions");
  const Scores how{scale * std::sqrt(static_cast<float>(head_dim)), softcap, window, sinks ? sinks->data() : nullptr};
  const Kernels &own = kernels_named(isa);
  nb::gil_scoped_release released;
  Pool pool(std::max(1, threads));
  pool.run(static_cast<int>(batch * shared),
           [&](int piece) { attend(own, q, k, v, how, piece / shared, piece % shared, out); });
}

// The first dimensions of every head turned by pairs; cosines, sines: [n, dim / 2]
void rotated_heads(const Heads4 &x, const Table &cosines, const Table &sines, bool interleaved, Out4 out, int threads) {
  const size_t n = x.shape(2), head_dim = x.shape(3), half = cosines.shape(1);
  for (size_t i = 0; i < 4; ++i) {
    if (out.shape(i) != x.shape(i)) refuse("the output of a rotation has the shape of its input");
  }
  if (cosines.shape(0) != n || sines.shape(0) != n || sines.shape(1) != half || 2 * half > head_dim)
    refuse("the tables of a rotation do not fit the heads");
  nb::gil_scoped_release released;
  Pool pool(std::max(1, threads));
  const size_t heads = x.shape(1);
  const size_t second = interleaved ? 1 : half, step = interleaved ? 2 : 1;
  pool.run(static_cast<int>(x.shape(0) * heads), [&](int piece) {
    std::vector<float> head(head_dim);
    for (size_t at = 0; at < n; ++at) {
      copy_head(x, piece / heads, piece % heads, at, 1.0f, head.data());
      const float *c = cosines.data() + at * half, *s = sines.data() + at * half;
      float *to = out.data() + (static_cast<size_t>(piece) * n + at) * head_dim;
      for (size_t i = 0; i < half; ++i) {
        const float a = head[i * step], b = head[i * step + second];
        to[i * step] = a * c[i] - b * s[i];
        to[i * step + second] = a * s[i] + b * c[i];
      }
      std::copy(head.data() + 2 * half, head.data() + head_dim, to + 2 * half);
    }
  });
}

// Calls body(row) for all rows, some at a time.
template <class Body>
void each_row(size_t rows, int threads, const Body &body) {
  Pool pool(std::max(1, threads));
  pool.run(static_cast<int>((rows + kRowsTogether - 1) / kRowsTogether), [&](int piece) {
    const size_t first = static_cast<size_t>(piece) * kRowsTogether;
    for (size_t row = first; row < std::min(rows, first + kRowsTogether); ++row) body(row);
  });
}

void normed_rows(const Table &x, const Vector &weight, float eps, Out2 out, int threads, const std::string &isa) {
  const size_t rows = x.shape(0), cols = x.shape(1);
  if (weight.shape(0) != cols || out.shape(0) != rows || out.shape(1) != cols)
    refuse("the norm does not fit its input");
  const Kernels &own = kernels_named(isa);
  nb::gil_scoped_release released;
  each_row(rows, threads, [&](size_t row) {
    own.rms_norm(x.data() + row * cols, weight.data(), static_cast<int>(cols), eps, out.data() + row * cols);
  });
}

void gated_rows(const Table &gate, const Table &up, const std::string &activation, Out2 out, int threads,
                const std::string &isa) {
  const size_t rows = gate.shape(0), cols = gate.shape(1);
  if (up.shape(0) != rows || up.shape(1) != cols || out.shape(0) != rows || out.shape(1) != cols)
    refuse("gate, up and output have one shape");
  const Kernels &own = kernels_named(isa);
  auto *kernel = activation == "silu"        ? own.swiglu
                 : activation == "gelu_tanh" ? own.geglu
                 : activation == "clamped"   ? own.clamped_swiglu
                                             : nullptr;
  if (!kernel) refuse("an activation is silu, gelu_tanh or clamped");
  nb::gil_scoped_release released;
  each_row(rows, threads, [&](size_t row) {
    float *to = out.data() + row * cols;
    std::copy_n(gate.data() + row * cols, cols, to);
    kernel(to, up.data() + row * cols, static_cast<int>(cols));
  });
}

}  // namespace

void bind_passes(nb::module_ &m) {
  m.def(
      "causal_attention", &causal_attention, "q"_a, "k"_a, "v"_a, nb::kw_only(), "out"_a, "scale"_a, "window"_a = 0,
      "softcap"_a = 0.0f, "sinks"_a.none() = nb::none(), "threads"_a = 1, "isa"_a = "",
      "Write softmax(scale q k^T) v for q [batch, heads, n, head_dim] and k, v [batch, kv_heads, n, head_dim], float32 "
      "of any strides, to out [batch, n, heads * head_dim]. A position sees itself and those before, with a window "
      "only so many. softcap: c tanh(score / c) is taken of scores, 0 for none. sinks: [heads], scores of a further "
      "key without a value.");
  m.def(
      "rotated_heads", &rotated_heads, "x"_a, "cosines"_a, "sines"_a, nb::kw_only(), "interleaved"_a, "out"_a,
      "threads"_a = 1,
      "Turn the first dim dimensions of heads [batch, heads, n, head_dim], float32 of any strides, by pairs: (2 i, 2 i "
      "+ 1) if interleaved, else (i, i + dim / 2). cosines, sines: [n, dim / 2].");
  m.def("normed_rows", &normed_rows, "x"_a, "weight"_a, nb::kw_only(), "eps"_a, "out"_a, "threads"_a = 1, "isa"_a = "",
        "Write x / sqrt(mean(x^2) + eps) * weight of each row, float32 [rows, cols].");
  m.def("gated_rows", &gated_rows, "gate"_a, "up"_a, nb::kw_only(), "activation"_a, "out"_a, "threads"_a = 1,
        "isa"_a = "", "Write activation(gate) * up, float32 [rows, cols]. activation: silu, gelu_tanh or clamped.");
}

}  // namespace bitsmith

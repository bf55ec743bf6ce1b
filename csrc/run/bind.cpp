// The running half of `bitsmith.system._core`.
#include "bind.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mapping.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitsmith {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Seen = nb::ndarray<nb::numpy, const uint8_t>;
using Made = nb::ndarray<nb::numpy, float>;

std::vector<float> copied(const Floats &values) { return {values.data(), values.data() + values.size()}; }

Made owned(float *data, std::initializer_list<size_t> shape) {
  nb::capsule owner(data, [](void *p) noexcept { delete[] static_cast<float *>(p); });
  return Made(data, shape, owner);
}

CacheType cache_type(const std::string &name) {
  if (name == "f32") return CacheType::f32;
  if (name == "f16") return CacheType::f16;
  if (name == "q8_0") return CacheType::q8_0;
  throw std::invalid_argument("a cache of " + name + " is not known; expected f16, q8_0 or f32.");
}

std::string found(int64_t number) { return ", found " + std::to_string(number) + "."; }

// Slots of the cache, each once, with room for what is put there.
void check(const Feed &feed, const CacheShape &cache) {
  std::vector<bool> taken(cache.batch);
  for (int i = 0; i < feed.rows; ++i) {
    const int64_t slot = feed.slots[i], start = feed.starts[i], count = feed.counts[i];
    if (slot < 0 || slot >= cache.batch)
      throw std::invalid_argument("slots must lie in 0.." + std::to_string(cache.batch - 1) + found(slot));
    if (taken[slot]) throw std::invalid_argument("slots must be distinct, found " + std::to_string(slot) + " twice.");
    taken[slot] = true;
    if (count < 1 || count > feed.n)
      throw std::invalid_argument("counts must lie in 1.." + std::to_string(feed.n) + found(count));
    if (start < 0 || start > cache.capacity - count)
      throw std::invalid_argument("a start and its count must lie in the cache's " + std::to_string(cache.capacity) +
                                  " positions, found " + std::to_string(start) + " and " + std::to_string(count) + ".");
  }
}

Made hidden(Model &model, const Tokens &tokens, const Numbers &slots, const Numbers &starts, const Numbers &counts,
            Cache &cache) {
  const size_t rows = tokens.shape(0), n = tokens.shape(1), width = model.shape().hidden;
  if (slots.shape(0) != rows || starts.shape(0) != rows || counts.shape(0) != rows)
    throw std::invalid_argument("slots, starts and counts need one number a row of tokens.");
  const Feed feed{tokens.data(), static_cast<int>(rows), static_cast<int>(n),
                  slots.data(),  starts.data(),          counts.data()};
  check(feed, cache.shape());
  auto out = std::make_unique<float[]>(rows * n * width);  // zeros, where there is filler
  const auto no_signal = [] {                              // Ctrl-C is seen between layers
    nb::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() == 0;
  };
  try {
    nb::gil_scoped_release release;
    model.hidden(feed, cache, out.get(), no_signal);
  } catch (const Interrupted &) {
    throw nb::python_error();
  }
  return owned(out.release(), {rows, n, width});
}

Made logits(Model &model, const Floats &hidden) {
  if (!model.complete()) throw std::invalid_argument("the model has no output matrix.");
  const size_t width = model.shape().hidden, vocab = model.output().rows();
  if (hidden.ndim() < 1 || hidden.shape(hidden.ndim() - 1) != width)
    throw std::invalid_argument("hidden states have the wrong width.");
  const size_t rows = hidden.size() / width;
  auto out = std::make_unique<float[]>(rows * vocab);
  {
    nb::gil_scoped_release release;
    model.logits(hidden.data(), static_cast<int>(rows), out.get());
  }
  return owned(out.release(), {rows, vocab});
}

void bind_pool(nb::module_ &m) {
  nb::class_<Pool>(m, "Pool")
      .def(
          "__init__",
          [](Pool *self, int threads) {
            if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must lie in 1..1024.");
            new (self) Pool(threads);
          },
          "threads"_a)
      .def_prop_ro("threads", &Pool::threads);
}

void bind_matrix(nb::module_ &m) {
  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const std::string &, int, int>(), "layout"_a, "rows"_a, "cols"_a)
      .def(
          "fill",
          [](Matrix &self, int first, int count, const Bytes &bytes, std::shared_ptr<Pool> pool) {
            nb::gil_scoped_release release;
            self.fill(first, count, bytes.data(), bytes.size(), *pool);
          },
          "first"_a, "count"_a, "data"_a, "pool"_a)
      .def(
          "read",
          [](Matrix &self, int descriptor, int64_t offset, std::shared_ptr<Pool> pool) {
            nb::gil_scoped_release release;
            self.read(descriptor, offset, *pool);
          },
          "descriptor"_a, "offset"_a, "pool"_a)
      .def_prop_ro("rows", &Matrix::rows)
      .def_prop_ro("cols", &Matrix::cols)
      .def_prop_ro("packed", &Matrix::packed)
      .def_prop_ro("row_bytes", &Matrix::row_bytes)
      .def_prop_ro("nbytes", &Matrix::bytes);
  m.def(
      "view_matrix",
      [](const std::string &layout, int rows, int cols, const Bytes &data) {
        std::shared_ptr<Matrix> matrix = Matrix::view(layout, rows, cols, data.data());
        if (data.size() != matrix->bytes()) throw std::invalid_argument("the bytes do not fit the matrix.");
        return matrix;
      },
      "layout"_a, "rows"_a, "cols"_a, "data"_a, nb::keep_alive<0, 4>());

  nb::class_<Linear>(m, "Linear")
      .def(
          "__init__",
          [](Linear *self, std::shared_ptr<Matrix> weight, std::optional<Vector> bias) {
            new (self) Linear{std::move(weight), bias ? std::vector<float>(bias->data(), bias->data() + bias->size())
                                                      : std::vector<float>{}};
          },
          "weight"_a, "bias"_a.none());
}

void bind_readings(nb::module_ &m) {
  nb::list readings;
  for (const Reading &reading : kReadings) readings.append(nb::make_tuple(reading.near, reading.far, reading.rows));
  m.attr("readings") = nb::tuple(readings);
  m.def(
      "reading_rates",
      [](const std::vector<std::shared_ptr<Matrix>> &matrices, const std::string &isa, std::shared_ptr<Pool> pool) {
        for (const auto &matrix : matrices)
          if (matrix->packed() != matrices.front()->packed())
            throw std::invalid_argument("packed matrices and floats are read in ways of their own.");
        nb::gil_scoped_release release;
        return reading_rates(matrices, isa_named(isa), *pool);
      },
      "matrices"_a, "isa"_a, "pool"_a);
}

void bind_mapping(nb::module_ &m) {
  nb::class_<Mapping>(m, "Mapping")
      .def(nb::init<int, size_t>(), "descriptor"_a, "size"_a)
      .def_prop_ro("lost", &Mapping::lost)
      .def_prop_ro("data", [](nb::object self) {
        const Mapping &mapping = nb::cast<const Mapping &>(self);
        return Seen(mapping.data(), {mapping.size()}, self);
      });
}

void bind_cache(nb::module_ &m) {
  nb::class_<Cache>(m, "Cache")
      .def(
          "__init__",
          [](Cache *self, int layers, int batch, int kv_heads, int head_dim, int capacity, const std::string &type,
             const Floats &cosines, const Floats &sines) {
            if (layers < 0 || batch < 1 || kv_heads < 1 || head_dim < 1 || capacity < 0 || cosines.ndim() != 2 ||
                cosines.shape(0) != static_cast<size_t>(capacity) || cosines.size() != sines.size() ||
                2 * cosines.shape(1) > static_cast<size_t>(head_dim))
              throw std::invalid_argument("a cache needs a rotation of each of its positions.");
            new (self) Cache({layers, batch, kv_heads, head_dim, capacity, cache_type(type)}, copied(cosines),
                             copied(sines), 2 * static_cast<int>(cosines.shape(1)));
          },
          "layers"_a, "batch"_a, "kv_heads"_a, "head_dim"_a, "capacity"_a, "type"_a, "cosines"_a, "sines"_a)
      .def(
          "set_more",
          [](Cache &self, const Floats &cosines, const Floats &sines) {
            if (cosines.ndim() != 2 || cosines.shape(0) != static_cast<size_t>(self.shape().capacity) ||
                cosines.size() != sines.size() || 2 * cosines.shape(1) != static_cast<size_t>(self.rotated()))
              throw std::invalid_argument("the second rotation does not fit the first.");
            self.set_more(copied(cosines), copied(sines));
          },
          "cosines"_a, "sines"_a)
      .def(
          "copy",
          [](Cache &self, Cache &other, const Numbers &lengths) {
            const CacheShape &a = self.shape(), &b = other.shape();
            if (a.layers != b.layers || a.batch != b.batch || a.kv_heads != b.kv_heads || a.head_dim != b.head_dim ||
                a.type != b.type || lengths.shape(0) != static_cast<size_t>(a.batch))
              throw std::invalid_argument("the caches do not match.");
            const int most = std::min(a.capacity, b.capacity);
            for (int slot = 0; slot < a.batch; ++slot)
              if (lengths(slot) < 0 || lengths(slot) > most)
                throw std::invalid_argument("lengths must lie in 0.." + std::to_string(most) + found(lengths(slot)));
            self.copy(other, lengths.data());
          },
          "other"_a, "lengths"_a)
      .def_prop_ro("nbytes", [](const Cache &self) { return 2 * self.bytes(); });
}

void bind_model(nb::module_ &m) {
  nb::class_<Model>(m, "Model")
      .def(
          "__init__",
          [](Model *self, int hidden, int heads, int kv_heads, int head_dim, float norm_eps, bool interleaved,
             bool exact, bool fine, const std::string &isa, std::shared_ptr<Pool> pool) {
            if (hidden < 1 || heads < 1 || kv_heads < 1 || heads % kv_heads || head_dim < 1)
              throw std::invalid_argument("the model's shape makes no sense.");
            new (self) Model({hidden, heads, kv_heads, head_dim, norm_eps, interleaved, exact, fine}, isa_named(isa),
                             std::move(pool));
          },
          "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "norm_eps"_a, "interleaved"_a, "exact"_a, "fine"_a,
          "isa"_a, "pool"_a)
      .def(
          "add_block",
          [](Model &self, std::optional<Floats> attn_norm, std::optional<Floats> ffn_norm, std::optional<Floats> q_norm,
             std::optional<Floats> k_norm, const std::vector<Linear> &linears, int window, int rotation,
             std::optional<Floats> attn_after, std::optional<Floats> ffn_after) {
            if (linears.size() != 7) throw std::invalid_argument("a block has q, k, v, output, gate, up, down.");
            const auto given = [](const std::optional<Floats> &norm) {
              return norm ? copied(*norm) : std::vector<float>{};
            };
            self.add_block({given(attn_norm), given(ffn_norm), given(q_norm), given(k_norm), linears[0], linears[1],
                            linears[2], linears[3], linears[4], linears[5], linears[6], window, rotation,
                            given(attn_after), given(ffn_after)});
          },
          "attn_norm"_a.none(), "ffn_norm"_a.none(), "q_norm"_a.none(), "k_norm"_a.none(), "linears"_a, "window"_a,
          "rotation"_a = 0, "attn_after"_a.none() = nb::none(), "ffn_after"_a.none() = nb::none())
      .def(
          "set_variation",
          [](Model &self, float embedding_scale, float residual_scale, float query_scale, float temperature,
             int temperature_length, bool gelu, bool whole_norms, bool late_norms) {
            if (temperature_length < 1) throw std::invalid_argument("temperature_length must be at least 1.");
            self.set_variation({embedding_scale, residual_scale, query_scale, temperature, temperature_length, gelu,
                                whole_norms, late_norms});
          },
          nb::kw_only(), "embedding_scale"_a, "residual_scale"_a, "query_scale"_a, "temperature"_a,
          "temperature_length"_a, "gelu"_a, "whole_norms"_a, "late_norms"_a)
      .def(
          "set_ends",
          [](Model &self, std::shared_ptr<Matrix> embedding, const Floats &norm, std::shared_ptr<Matrix> output) {
            self.set_ends(std::move(embedding), copied(norm), std::move(output));
          },
          "embedding"_a, "norm"_a, "output"_a)
      .def("hidden", &hidden, "tokens"_a, "slots"_a, "starts"_a, "counts"_a, "cache"_a)
      .def("logits", &logits, "hidden"_a)
      .def(
          "set_reading",
          [](Model &self, int packed, int floats) {
            constexpr int kCount = std::size(kReadings);
            if (packed < 0 || packed >= kCount || floats < 0 || floats >= kCount)
              throw std::invalid_argument("a way of reading must lie in 0.." + std::to_string(kCount - 1) + ".");
            self.set_reading(kReadings[packed], kReadings[floats]);
          },
          "packed"_a, "floats"_a)
      .def("times", [](const Model &self) {
        const Times &times = self.times();
        return nb::make_tuple(times.total, times.products, times.attention);
      });
}

}  // namespace

void bind_run(nb::module_ &m) {
  bind_pool(m);
  bind_readings(m);
  bind_mapping(m);
  bind_matrix(m);
  bind_cache(m);
  bind_model(m);
}

}  // namespace bitsmith

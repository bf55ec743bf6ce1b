// Models of `bitsmith.system._core`: caches, operations, forward passes.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"
#include "beside.h"
#include "bind.h"
#include "delta.h"
#include "experts.h"
#include "layer_embedding.h"
#include "mlp.h"
#include "model.h"
#include "shared.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitsmith {
namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Made = nb::ndarray<nb::numpy, float>;

std::vector<float> copied(const Floats &values) { return {values.data(), values.data() + values.size()}; }

std::vector<float> given(const std::optional<Floats> &values) {
  return values ? copied(*values) : std::vector<float>{};
}

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
            Cache &cache, const std::optional<Floats> &table, std::optional<int> single) {
  const size_t rows = tokens.shape(0), n = tokens.shape(1), width = model.shape().hidden;
  if (slots.shape(0) != rows || starts.shape(0) != rows || counts.shape(0) != rows)
    throw std::invalid_argument("slots, starts and counts need one number a row of tokens.");
  if (table && table->size() != rows * n * model.layer_inputs())
    throw std::invalid_argument("there must be a row of the table of layers for each token.");
  if (single && (*single < 0 || *single > static_cast<int>(rows)))
    throw std::invalid_argument("`single` must lie in 0.." + std::to_string(rows) + found(*single));
  const Feed feed{tokens.data(), static_cast<int>(rows), static_cast<int>(n), slots.data(),
                  starts.data(), counts.data(),          single.value_or(-1), table ? table->data() : nullptr};
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

std::vector<Rotation> rotations_of(const std::vector<std::pair<Floats, Floats>> &tables, int capacity) {
  std::vector<Rotation> found;
  for (const auto &[cosines, sines] : tables) {
    if (cosines.ndim() != 2 || sines.ndim() != 2 || cosines.shape(0) != static_cast<size_t>(capacity) ||
        sines.shape(0) != cosines.shape(0) || sines.shape(1) != cosines.shape(1))
      throw std::invalid_argument("a cache needs a rotation of each of its positions.");
    found.push_back({{copied(cosines), copied(sines)}, 2 * static_cast<int>(cosines.shape(1))});
  }
  return found;
}

void bind_cache(nb::module_ &m) {
  nb::class_<Cache>(m, "Cache")
      .def(
          "__init__",
          [](Cache *self, const std::vector<std::pair<int, int>> &heads, int batch, int capacity,
             const std::string &type, const std::vector<std::pair<Floats, Floats>> &rotations,
             const std::vector<size_t> &states) {
            CacheShape shape{{}, states, batch, capacity, cache_type(type)};
            if (!states.empty() && states.size() != heads.size())
              throw std::invalid_argument("states need one number a layer.");
            for (const auto &[kv_heads, head_dim] : heads) {
              if (kv_heads < 0 || head_dim < 1) throw std::invalid_argument("a layer needs heads.");
              shape.layers.push_back({kv_heads, head_dim});
            }
            if (batch < 1 || capacity < 0) throw std::invalid_argument("a cache needs at least one slot.");
            new (self) Cache(std::move(shape), rotations_of(rotations, capacity));
          },
          "heads"_a, "batch"_a, "capacity"_a, "type"_a, "rotations"_a, "states"_a = std::vector<size_t>{})
      .def(
          "set_longer",
          [](Cache &self, int number, int context, const Floats &cosines, const Floats &sines) {
            if (number < 0 || number >= self.rotations() || context < 1 ||
                cosines.size() != self.rotation(number).usual.cosines.size() || cosines.size() != sines.size())
              throw std::invalid_argument("a longer rotation needs the size of a usual one.");
            self.set_longer(number, context, {copied(cosines), copied(sines)});
          },
          "number"_a, "context"_a, "cosines"_a, "sines"_a)
      .def(
          "copy",
          [](Cache &self, Cache &other, const Numbers &lengths) {
            const CacheShape &a = self.shape(), &b = other.shape();
            if (!(a.layers == b.layers) || a.states != b.states || a.batch != b.batch || a.type != b.type ||
                lengths.shape(0) != static_cast<size_t>(a.batch))
              throw std::invalid_argument("the caches do not match.");
            const int most = std::min(a.capacity, b.capacity);
            for (int slot = 0; slot < a.batch; ++slot)
              if (lengths(slot) < 0 || lengths(slot) > most)
                throw std::invalid_argument("lengths must lie in 0.." + std::to_string(most) + found(lengths(slot)));
            self.copy(other, lengths.data());
          },
          "other"_a, "lengths"_a)
      .def(
          "copy_slot",
          [](Cache &self, int source, int slot, int64_t length) {
            const int batch = self.shape().batch;
            if (source < 0 || source >= batch || slot < 0 || slot >= batch || source == slot)
              throw std::invalid_argument("two slots of 0.." + std::to_string(batch - 1) + " are needed.");
            if (length < 0 || length > self.shape().capacity)
              throw std::invalid_argument("lengths must lie in 0.." + std::to_string(self.shape().capacity) +
                                          found(length));
            self.copy_slot(source, slot, length);
          },
          "source"_a, "slot"_a, "length"_a)
      .def_prop_ro("nbytes", [](const Cache &self) { return 2 * self.bytes() + self.state_bytes(); });
}

Activation activation_named(const std::string &name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu;
  if (name == "clamped") return Activation::clamped;
  throw std::invalid_argument("the activation " + name + " is not known; expected silu, gelu_tanh or clamped.");
}

void bind_operations(nb::module_ &m) {
  nb::class_<Operation>(m, "Operation");
  nb::class_<SelfAttention, Operation>(m, "Attention")
      .def(
          "__init__",
          [](SelfAttention *self, const std::vector<std::optional<Linear>> &linears, std::optional<Floats> q_norm,
             std::optional<Floats> k_norm, std::optional<Floats> sinks, int layer, int heads, int kv_heads,
             int head_dim, float norm_eps, int window, int rotation, bool interleaved, bool whole_norms,
             bool late_norms, float query_scale, float temperature, int temperature_length, float softcap,
             bool value_norms, bool gated) {
            if (linears.size() != 4) throw std::invalid_argument("attention has q, k, v and output.");
            const auto at = [&](int i) { return linears[i].value_or(Linear{}); };
            new (self)
                SelfAttention({layer, heads, kv_heads, head_dim, norm_eps, window, rotation, interleaved, whole_norms,
                               late_norms, query_scale, temperature, temperature_length, softcap, value_norms, gated},
                              at(0), at(1), at(2), at(3), given(q_norm), given(k_norm), given(sinks));
          },
          "linears"_a, "q_norm"_a.none(), "k_norm"_a.none(), "sinks"_a.none(), nb::kw_only(), "layer"_a, "heads"_a,
          "kv_heads"_a, "head_dim"_a, "norm_eps"_a, "window"_a, "rotation"_a, "interleaved"_a, "whole_norms"_a,
          "late_norms"_a, "query_scale"_a, "temperature"_a, "temperature_length"_a, "softcap"_a, "value_norms"_a,
          "gated"_a);
  nb::class_<DeltaNet, Operation>(m, "DeltaNet")
      .def(
          "__init__",
          [](DeltaNet *self, const Linear &mixed, const Linear &z, std::vector<Linear> gates, const Linear &output,
             const Floats &taps, const Floats &factors, const Floats &shifts, const Floats &norm, int layer,
             int key_heads, int value_heads, int key_dim, int value_dim, bool tiled, float norm_eps) {
            if (taps.ndim() != 2) throw std::invalid_argument("taps need two dimensions.");
            const DeltaShape shape{layer,   key_heads,         value_heads,
                                   key_dim, value_dim,         static_cast<int>(taps.shape(1)),
                                   tiled,   gates.size() == 1, norm_eps};
            new (self) DeltaNet(shape, mixed, z, std::move(gates), output, copied(taps), copied(factors),
                                copied(shifts), copied(norm));
          },
          "mixed"_a, "z"_a, "gates"_a, "output"_a, "taps"_a, "factors"_a, "shifts"_a, "norm"_a, nb::kw_only(),
          "layer"_a, "key_heads"_a, "value_heads"_a, "key_dim"_a, "value_dim"_a, "tiled"_a, "norm_eps"_a);
  nb::class_<Mlp, Operation>(m, "Mlp").def(
      "__init__",
      [](Mlp *self, const std::string &activation, const Linear &gate, const Linear &up, const Linear &down) {
        new (self) Mlp(activation_named(activation), gate, up, down);
      },
      "activation"_a, "gate"_a, "up"_a, "down"_a);
  nb::class_<LayerEmbedding, Operation>(m, "LayerEmbedding")
      .def(
          "__init__",
          [](LayerEmbedding *self, const std::string &activation, int layer, const Linear &gate,
             const Linear &projection) {
            if (layer < 0) throw std::invalid_argument("a layer's number must be at least 0.");
            new (self) LayerEmbedding(activation_named(activation), layer, gate, projection);
          },
          "activation"_a, "layer"_a, "gate"_a, "projection"_a);
  nb::class_<Residency>(m, "Residency")
      .def(nb::init<size_t>(), "limit"_a)
      .def_prop_ro("limit", &Residency::limit)
      .def_prop_ro("fetched", &Residency::fetched);
  nb::class_<Router>(m, "Router")
      .def(
          "__init__",
          [](Router *self, const Linear &linear, std::optional<Floats> norm, std::optional<Floats> scales,
             float norm_eps) { new (self) Router{linear, given(norm), norm_eps, given(scales)}; },
          "linear"_a, "norm"_a.none() = nb::none(), "scales"_a.none() = nb::none(), nb::kw_only(), "norm_eps"_a = 0.0f);
  nb::class_<Experts, Operation>(m, "Experts")
      .def(
          "__init__",
          [](Experts *self, const std::string &activation, const Router &router, std::vector<Linear> gates,
             std::vector<Linear> ups, std::vector<Linear> downs, std::shared_ptr<Residency> residency, int used,
             bool chosen, bool normalize) {
            new (self) Experts(activation_named(activation), {used, chosen, normalize}, router, std::move(gates),
                               std::move(ups), std::move(downs), std::move(residency));
          },
          "activation"_a, "router"_a, "gates"_a, "ups"_a, "downs"_a, "residency"_a.none(), nb::kw_only(), "used"_a,
          "chosen"_a, "normalize"_a);
  nb::class_<SharedExpert, Operation>(m, "SharedExpert")
      .def(nb::init<std::shared_ptr<Experts>, std::shared_ptr<Mlp>, Linear>(), "experts"_a, "shared"_a, "gate"_a);
  nb::class_<ExpertsBesideMlp, Operation>(m, "ExpertsBesideMlp")
      .def(
          "__init__",
          [](ExpertsBesideMlp *self, std::shared_ptr<Mlp> mlp, std::shared_ptr<Experts> experts,
             const std::vector<Floats> &norms, float norm_eps) {
            if (norms.size() != 4) throw std::invalid_argument("experts beside an MLP have four norms.");
            const auto at = [&](int i) { return copied(norms[i]); };
            new (self) ExpertsBesideMlp(std::move(mlp), std::move(experts), {at(0), at(1), at(2), at(3), norm_eps});
          },
          "mlp"_a, "experts"_a, "norms"_a, nb::kw_only(), "norm_eps"_a);
}

void bind_models(nb::module_ &m) {
  nb::class_<Model>(m, "Model")
      .def(
          "__init__",
          [](Model *self, int hidden, float norm_eps, float embedding_scale, float residual_scale, bool exact,
             bool fine, const std::string &isa, std::shared_ptr<Pool> pool) {
            if (hidden < 1) throw std::invalid_argument("the width of hidden states must be at least 1.");
            new (self) Model({hidden, norm_eps, embedding_scale, residual_scale},
                             std::make_unique<Compute>(isa_named(isa), std::move(pool), exact, fine));
          },
          "hidden"_a, nb::kw_only(), "norm_eps"_a, "embedding_scale"_a, "residual_scale"_a, "exact"_a, "fine"_a,
          "isa"_a, "pool"_a)
      .def(
          "add_part",
          [](Model &self, std::shared_ptr<Operation> operation, std::optional<Floats> before,
             std::optional<Floats> after,
             float scale) { self.add_part({std::move(operation), given(before), given(after), scale}); },
          "operation"_a, "before"_a.none(), "after"_a.none(), "scale"_a = 1.0f)
      .def(
          "set_layer_inputs",
          [](Model &self, const Linear &projection, const Floats &norm) {
            self.set_layer_inputs(projection, copied(norm));
          },
          "projection"_a, "norm"_a)
      .def(
          "set_ends",
          [](Model &self, std::shared_ptr<Matrix> embedding, const Floats &norm, std::shared_ptr<Matrix> output) {
            self.set_ends(std::move(embedding), copied(norm), std::move(output));
          },
          "embedding"_a, "norm"_a, "output"_a)
      .def("hidden", &hidden, "tokens"_a, "slots"_a, "starts"_a, "counts"_a, "cache"_a, "table"_a.none() = nb::none(),
           "single"_a.none() = nb::none())
      .def("logits", &logits, "hidden"_a)
      .def(
          "set_reading",
          [](Model &self, int packed, int floats) {
            constexpr int kCount = std::size(kReadings);
            if (packed < 0 || packed >= kCount || floats < 0 || floats >= kCount)
              throw std::invalid_argument("a way of reading must lie in 0.." + std::to_string(kCount - 1) + ".");
            self.compute().set_reading(kReadings[packed], kReadings[floats]);
          },
          "packed"_a, "floats"_a)
      .def("times", [](Model &self) {
        const Times &times = self.compute().times();
        return nb::make_tuple(times.total, times.products, times.attention);
      });
}

}  // namespace

void bind_model(nb::module_ &m) {
  bind_cache(m);
  bind_operations(m);
  bind_models(m);
}

}  // namespace bitsmith

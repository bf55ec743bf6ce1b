#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>

#include "arrays.h"
#include "bind.h"
#include "isa.h"
#include "isas.h"
#include "pool.h"
#include "trainable.h"

namespace nb = nanobind;

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)                      \
  namespace isa {                                  \
  extern const TrainableKernels kTrainableKernels; \
  }
BITSMITH_FLOAT_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

constexpr int64_t kRows = 32;  // rows of a piece

const TrainableKernels &trainable_kernels(const std::string &name) {
  const Isa isa = name.empty() ? chosen_isa() : isa_named(name);
  const TrainableKernels *found = &generic::kTrainableKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kTrainableKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

using OptionalRead = std::optional<Read>;
using OptionalWrite = std::optional<Write>;

// Rows of a matrix, and how many they are.
struct Matrix {
  TrainableRows rows;
  int64_t count, blocks;
};

Matrix matrix_of(const Read &weight, const Read &offsets, const Read &scale, const OptionalRead &base, float first,
                 int levels, int lanes) {
  if (weight.ndim() != 2 || scale.ndim() != 2) refuse("weights are [rows, cols], and scales [rows, blocks]");
  const auto count = static_cast<int64_t>(weight.shape(0)), cols = static_cast<int64_t>(weight.shape(1));
  const auto blocks = static_cast<int64_t>(scale.shape(1));
  if (blocks < 1 || cols % blocks || cols / blocks % lanes || cols < 1) {
    refuse("rows of " + text(cols) + " weights do not divide into " + text(blocks) + " blocks of a multiple of " +
           text(lanes));
  }
  if (levels < 2 || levels > 256) refuse("a grid has 2 to 256 levels");
  const TrainableRows rows{read<float>(weight, "weight", {count, cols}),
                           read<float>(offsets, "offsets", {count, cols}),
                           read<float>(scale, "scale", {count, blocks}),
                           base ? read<float>(*base, "base", {count, blocks}) : nullptr,
                           cols,
                           cols / blocks,
                           first,
                           static_cast<float>(levels - 1)};
  return {rows, count, blocks};
}

template <class Body>
void each(int64_t rows, int threads, const Body &body) {
  const int pieces = static_cast<int>((rows + kRows - 1) / kRows);
  Pool pool(std::max(1, std::min(threads, pieces)));
  pool.run(pieces, [&](int piece) { body(piece * kRows, std::min(kRows, rows - piece * kRows)); });
}

void trainable_values(const Read &weight, const Read &offsets, const Read &scale, const OptionalRead &base, float first,
                      int levels, const Write &values, int threads, const std::string &isa) {
  const TrainableKernels &kernels = trainable_kernels(isa);
  const Matrix matrix = matrix_of(weight, offsets, scale, base, first, levels, kernels.lanes);
  auto *out = write<float>(values, "values", {matrix.count, matrix.rows.cols});
  nb::gil_scoped_release released;
  each(matrix.count, threads, [&](int64_t from, int64_t count) { kernels.values(matrix.rows, from, count, out); });
}

void trainable_gradients(const Read &gradient, const Read &weight, const Read &offsets, const Read &scale,
                         const OptionalRead &base, float first, int levels, const Write &to_offsets,
                         const Write &to_scale, const OptionalWrite &to_base, int threads, const std::string &isa) {
  const TrainableKernels &kernels = trainable_kernels(isa);
  const Matrix matrix = matrix_of(weight, offsets, scale, base, first, levels, kernels.lanes);
  const auto *of_values = read<float>(gradient, "gradient", {matrix.count, matrix.rows.cols});
  const TrainableGradients out{write<float>(to_offsets, "to_offsets", {matrix.count, matrix.rows.cols}),
                               write<float>(to_scale, "to_scale", {matrix.count, matrix.blocks}),
                               to_base ? write<float>(*to_base, "to_base", {matrix.count, matrix.blocks}) : nullptr};
  nb::gil_scoped_release released;
  each(matrix.count, threads,
       [&](int64_t from, int64_t count) { kernels.gradients(matrix.rows, from, count, of_values, out); });
}

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_trainable(nb::module_ &m) {
  using namespace nb::literals;
  const auto none = nb::none();
  m.def(
      "trainable_lanes", [](const std::string &isa) { return quantize::trainable_kernels(isa).lanes; }, nb::kw_only(),
      "isa"_a = "", "Blocks of trainable matrices must have a multiple of so many weights.");
  m.def("trainable_values", &quantize::trainable_values, "weight"_a, "offsets"_a, "scale"_a, "base"_a.none(),
        nb::kw_only(), "first"_a, "levels"_a, "values"_a, "threads"_a, "isa"_a = "",
        "Write the values, float32 [rows, cols], of weights rounded with offsets on a grid of consecutive levels from "
        "`first` on; see calibration/trainable.py. scale, base: float32 [rows, blocks].");
  m.def("trainable_gradients", &quantize::trainable_gradients, "gradient"_a, "weight"_a, "offsets"_a, "scale"_a,
        "base"_a.none(), nb::kw_only(), "first"_a, "levels"_a, "to_offsets"_a, "to_scale"_a, "to_base"_a.none() = none,
        "threads"_a, "isa"_a = "",
        "Write the straight-through gradients of offsets, scales and bases, from that of the values.");
}

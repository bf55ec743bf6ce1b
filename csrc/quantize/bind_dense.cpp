#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "dense.h"
#include "isa.h"
#include "isas.h"
#include "pool.h"

namespace nb = nanobind;

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)                               \
  namespace isa {                                           \
  extern const DenseKernels kDenseKernels, kRoundedKernels; \
  }
BITSMITH_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

constexpr int64_t kStrip = kDenseStrip;

const DenseKernels &dense_kernels(const std::string &name, bool rounded) {
  const Isa isa = name.empty() ? chosen_isa() : isa_named(name);
  const DenseKernels *found = nullptr;
#define BITSMITH_TAKE(own) \
  if (isa == Isa::own) found = rounded ? &own::kRoundedKernels : &own::kDenseKernels;
  BITSMITH_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  if (!found || !found->multiply)
    refuse("the instruction set " + std::string(isa_name(isa)) + " has no products of bfloat16");
  return *found;
}

int64_t up(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Room for strips, kept by the calling thread: pages that are new to a process cost time.
uint32_t *room(int which, int64_t words) {
  thread_local std::vector<uint32_t> held[2];
  held[which].resize(std::max(held[which].size(), static_cast<size_t>(words)));
  return held[which].data();
}

// x[rows, cols]: an input; original: the input in the original model, or null
struct Inputs {
  const float *x, *original;
  int64_t rows, cols;
};

// gram += x^T x in the tiles on and above the diagonal alone; drift += (original - x)^T x
void sum_products(const DenseKernels &kernels, const Inputs &in, float *gram, float *drift, Pool &pool) {
  const int64_t strips = up(in.cols, kStrip), most = up(std::min<int64_t>(in.rows, kDenseRows), kernels.together);
  uint32_t *own = room(0, strips * most * kStrip), *moved = in.original ? room(1, strips * most * kStrip) : nullptr;
  for (int64_t first = 0; first < in.rows; first += kDenseRows) {
    const int64_t count = std::min<int64_t>(kDenseRows, in.rows - first), terms = up(count, kernels.together);
    const int64_t size = terms * kStrip;
    const float *x = in.x + first * in.cols, *before = in.original ? in.original + first * in.cols : nullptr;
    pool.run(static_cast<int>(strips), [&](int strip) {
      kernels.pack_columns(x, nullptr, count, in.cols, strip * kStrip, own + strip * size);
      if (before) kernels.pack_columns(before, x, count, in.cols, strip * kStrip, moved + strip * size);
    });
    const auto add = [&](const uint32_t *left, int64_t i, int64_t j, float *total) {
      alignas(64) float product[kStrip * kStrip];
      kernels.multiply(left + i * size, own + j * size, terms, product);
      const int64_t wide = std::min(kStrip, in.cols - j * kStrip), high = std::min(kStrip, in.cols - i * kStrip);
      for (int64_t row = 0; row < high; ++row) {
        float *to = total + (i * kStrip + row) * in.cols + j * kStrip;
        for (int64_t column = 0; column < wide; ++column) to[column] += product[row * kStrip + column];
      }
    };
    pool.run(static_cast<int>(strips * strips), [&](int tile) {
      const int64_t i = tile / strips, j = tile % strips;
      if (i <= j) add(own, i, j, gram);
      if (before) add(moved, i, j, drift);
    });
  }
}

void add_grams(const Read &x, const Write &gram, const std::optional<Read> &original, const std::optional<Write> &drift,
               bool rounded, int threads, const std::string &isa) {
  if (x.ndim() != 2) refuse("the input has " + text(x.ndim()) + " dimensions; expected [rows, cols]");
  const auto rows = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1));
  if (original.has_value() != drift.has_value()) refuse("original goes with drift");
  const Inputs in{read<float>(x, "x", {rows, cols}),
                  original ? read<float>(*original, "original", {rows, cols}) : nullptr, rows, cols};
  auto *total = write<float>(gram, "gram", {cols, cols});
  auto *moved = write<float>(drift, "drift", {cols, cols});
  const DenseKernels &kernels = dense_kernels(isa, rounded);
  nb::gil_scoped_release released;
  Pool pool(std::max(1, threads));
  sum_products(kernels, in, total, moved, pool);
}

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_dense(nb::module_ &m) {
  using namespace nb::literals;
  m.def("add_grams", &quantize::add_grams, "x"_a, "gram"_a, "original"_a.none() = nb::none(),
        "drift"_a.none() = nb::none(), nb::kw_only(), "rounded"_a = false, "threads"_a = 1, "isa"_a = "",
        "Add x^T x to what lies on and above the diagonal of gram, and (original - x)^T x to drift; float32 [rows, "
        "cols] and [cols, cols]. What lies below the diagonal of gram has no meaning. rounded: inputs are rounded to "
        "bfloat16, sums are float32; ValueError where the instruction set has no such products.");
}

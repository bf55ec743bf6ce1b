#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "columns.h"
#include "isa.h"
#include "isas.h"
#include "pool.h"

namespace nb = nanobind;

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)                \
  namespace isa {                            \
  extern const ColumnKernels kColumnKernels; \
  }
BITSMITH_FLOAT_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

const ColumnKernels &column_kernels(const std::string &name) {
  const Isa isa = name.empty() ? chosen_isa() : isa_named(name);
  const ColumnKernels *found = &generic::kColumnKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kColumnKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

void column_sums(const Read &x, const Write &square, const Write &magnitude, const Write &largest,
                 const std::string &isa) {
  if (x.ndim() != 2) refuse("the input has " + text(x.ndim()) + " dimensions; expected [rows, cols]");
  const auto rows = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1));
  const float *from = read<float>(x, "x", {rows, cols});
  auto *squares = write<double>(square, "square", {cols});
  auto *sizes = write<double>(magnitude, "magnitude", {cols});
  auto *top = write<float>(largest, "largest", {cols});
  const ColumnKernels &kernels = column_kernels(isa);
  nb::gil_scoped_release released;
  kernels.sums(from, rows, cols, squares, sizes, top);
}

// The columns and rows `left` of a matrix [.., stride], moved to the upper left corner; the rest is zero.
void compact(std::vector<float> &rest, int64_t stride, const std::vector<int64_t> &left) {
  const auto size = static_cast<int64_t>(left.size());
  for (int64_t row = 0; row < size; ++row) {
    const float *from = &rest[left[row] * stride];
    float *to = &rest[row * stride];
    for (int64_t column = 0; column < size; ++column) to[column] = from[left[column]];
    std::fill(to + size, to + stride, 0.0f);
  }
}

// order: int64 [cols]; false where a pivot is not above `least`
bool pivoted_order(const Read &h, const Read &added, float least, const Write &order, int threads,
                   const std::string &isa) {
  const auto cols = static_cast<int64_t>(h.ndim() == 2 ? h.shape(0) : 0);
  if (cols < 1) refuse("a Hessian is [cols, cols]");
  const float *from = read<float>(h, "hessian", {cols, cols}), *ridge = read<float>(added, "added", {cols});
  auto *to = write<int64_t>(order, "order", {cols});
  const ColumnKernels &kernels = column_kernels(isa);
  nb::gil_scoped_release released;
  const auto padded = [](int64_t n) { return (n + kColumnRoom - 1) / kColumnRoom * kColumnRoom; };
  const int64_t stride = padded(cols);
  std::vector<float> rest(cols * stride), panel(kPanel * stride), diagonal(stride);
  std::vector<int64_t> places(cols), chosen(kPanel);
  for (int64_t i = 0; i < cols; ++i) {
    std::copy_n(from + i * cols, cols, &rest[i * stride]);
    rest[i * stride + i] += ridge[i];
    places[i] = i;
  }
  Pool pool(std::max(1, threads));
  for (int64_t done = 0; done < cols;) {
    const auto size = static_cast<int64_t>(places.size());
    std::fill(diagonal.begin(), diagonal.end(), std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < size; ++i) diagonal[i] = rest[i * stride + i];
    const int wanted = static_cast<int>(std::min<int64_t>(kPanel, size));
    const int found =
        kernels.pivots(rest.data(), stride, size, wanted, least, diagonal.data(), panel.data(), chosen.data());
    if (found < wanted) return false;
    for (int i = 0; i < found; ++i) to[cols - 1 - done - i] = places[chosen[i]];
    done += found;
    std::vector<int64_t> left, kept;
    for (int64_t i = 0; i < size; ++i) {
      if (!std::isinf(diagonal[i])) left.push_back(i), kept.push_back(places[i]);
    }
    if (static_cast<int64_t>(left.size()) != size - found) return false;  // a value is not finite
    constexpr int64_t kRows = 48;
    pool.run(static_cast<int>((size + kRows - 1) / kRows), [&](int piece) {
      const int64_t first = piece * kRows;
      kernels.update(rest.data(), stride, first, std::min(first + kRows, size), panel.data(), found);
    });
    compact(rest, stride, left);
    places = std::move(kept);
  }
  return true;
}

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_columns(nb::module_ &m) {
  using namespace nb::literals;
  m.def(
      "column_sums", &quantize::column_sums, "x"_a, nb::kw_only(), "square"_a, "magnitude"_a, "largest"_a, "isa"_a = "",
      "Add the sums of squares and magnitudes of float32 inputs [rows, cols] to float64 [cols], and raise the largest "
      "magnitudes, float32 [cols]. A NaN becomes the largest magnitude of its column.");
  m.def("pivoted_order", &quantize::pivoted_order, "hessian"_a, "added"_a, nb::kw_only(), "least"_a, "order"_a,
        "threads"_a, "isa"_a = "",
        "Write the order of rounding, int64 [cols]: see `_pivoted` of quant/rounders/hessian.py. False where a pivot "
        "is not above `least`.");
}

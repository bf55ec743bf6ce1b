// Products with matrices that torch's layers own, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bind.h"
#include "stored.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitsmith {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Levels = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Halves = nb::ndarray<uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Precision precision_named(const std::string &name) {
  if (name == "exact") return Precision::exact;
  if (name == "fine") return Precision::fine;
  if (name == "coarse") return Precision::coarse;
  throw std::invalid_argument("a precision of " + name + " is not known; expected exact, fine or coarse.");
}

// A matrix of grids where its panels lie. Throws std::invalid_argument for other layouts and sizes.
std::shared_ptr<Matrix> matrix_of(const std::string &layout, int rows, int cols, const Bytes &panels) {
  std::shared_ptr<Matrix> w = Matrix::view_panels(layout, rows, cols, panels.data());
  if (layout_of(w->panels().type).half != Half::none || w->panels().type < PanelType::int4_32)
    throw std::invalid_argument("products with stored panels are taken with grids, not with " + layout + ".");
  if (panels.size() != w->panel_bytes()) throw std::invalid_argument("the panels do not fit the matrix.");
  return w;
}

void check(const Rows2 &x, int x_cols, const Out2 &out, int out_cols) {
  if (x.shape(1) != static_cast<size_t>(x_cols) || out.shape(0) != x.shape(0) ||
      out.shape(1) != static_cast<size_t>(out_cols))
    throw std::invalid_argument("the inputs or outputs of a product do not fit its matrix.");
}

}  // namespace

void bind_stored(nb::module_ &m) {
  nb::class_<StoredProducts>(m, "StoredProducts")
      .def(
          "__init__",
          [](StoredProducts *self, int threads, const std::string &isa) {
            if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must lie in 1..1024.");
            new (self) StoredProducts(isa.empty() ? chosen_isa() : isa_named(isa), threads);
          },
          "threads"_a, "isa"_a = "")
      .def(
          "forward",
          [](StoredProducts &self, const std::string &layout, int rows, int cols, const Bytes &panels, const Rows2 &x,
             const std::string &precision, Out2 out, std::optional<float> threshold) {
            std::shared_ptr<Matrix> w = matrix_of(layout, rows, cols, panels);
            check(x, cols, out, rows);
            if (threshold && !(*threshold >= 0)) throw std::invalid_argument("a threshold must be at least 0.");
            const Precision how = precision_named(precision);
            const Rows given{x.data(), static_cast<size_t>(cols), static_cast<int>(x.shape(0))};
            nb::gil_scoped_release release;
            if (given.count > 0) self.forward(std::move(w), given, how, threshold.value_or(kNotMixed), out.data());
          },
          "layout"_a, "rows"_a, "cols"_a, "panels"_a, "x"_a, "precision"_a, "out"_a, "threshold"_a.none() = nb::none())
      .def(
          "back",
          [](StoredProducts &self, const std::string &layout, int rows, int cols, const Bytes &panels, const Rows2 &x,
             Out2 out) {
            const std::shared_ptr<Matrix> w = matrix_of(layout, rows, cols, panels);
            check(x, rows, out, cols);
            nb::gil_scoped_release release;
            if (x.shape(0) > 0) self.back(*w, x.data(), static_cast<int>(x.shape(0)), out.data());
          },
          "layout"_a, "rows"_a, "cols"_a, "panels"_a, "x"_a, "out"_a)
      .def(
          "decode",
          [](StoredProducts &self, int rows, int cols, int width, bool has_offset, const Bytes &panels,
             const Levels &levels, Halves out) {
            if (rows < 1 || cols < 1 || width < 32 || width % 32 || cols % width)
              throw std::invalid_argument("rows of 4-bit codes are whole blocks of a multiple of 32 columns.");
            const Nibbles w{panels.data(), rows, cols, width, has_offset, levels.data()};
            const size_t whole = (rows + kPanelRows - 1) / kPanelRows;
            if (levels.shape(0) != 16 || panels.size() != whole * w.panel_bytes())
              throw std::invalid_argument("the panels or the levels do not fit the matrix.");
            if (out.shape(0) != static_cast<size_t>(rows) || out.shape(1) != static_cast<size_t>(cols))
              throw std::invalid_argument("the output does not fit the matrix.");
            nb::gil_scoped_release release;
            self.decode(w, out.data());
          },
          "rows"_a, "cols"_a, "width"_a, "has_offset"_a, "panels"_a, "levels"_a, "out"_a);
}

}  // namespace bitsmith

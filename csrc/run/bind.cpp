// The running half of `bitsmith.system._core`: threads, matrices, files. Models are in bind_model.cpp.
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

#include "compute.h"
#include "mapping.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitsmith {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Seen = nb::ndarray<nb::numpy, const uint8_t>;

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
  nb::class_<Arena>(m, "Arena").def(nb::init<>());
  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const std::string &, int, int, Arena *>(), "layout"_a, "rows"_a, "cols"_a,
           "arena"_a.none() = nb::none())
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
  nb::class_<File>(m, "File").def(nb::init<int>(), "descriptor"_a);
  m.def("later_matrix", &Matrix::later, "layout"_a, "rows"_a, "cols"_a, "file"_a, "offset"_a);
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
          [](Linear *self, std::shared_ptr<Matrix> weight, std::optional<Vector> bias, std::optional<float> threshold,
             std::shared_ptr<Matrix> down, std::shared_ptr<Matrix> up) {
            if (threshold && !(*threshold >= 0)) throw std::invalid_argument("a threshold must be at least 0.");
            if (!down != !up) throw std::invalid_argument("an adapter has two matrices.");
            if (down && (down->packed() || up->packed() || down->cols() != weight->cols() ||
                         up->rows() != weight->rows() || up->cols() != down->rows()))
              throw std::invalid_argument("the matrices of the adapter do not fit.");
            new (self)
                Linear{std::move(weight),
                       bias ? std::vector<float>(bias->data(), bias->data() + bias->size()) : std::vector<float>{},
                       threshold.value_or(kNotMixed),
                       {std::move(down), std::move(up)}};
          },
          "weight"_a, "bias"_a.none(), "threshold"_a.none() = nb::none(), "down"_a.none() = nb::none(),
          "up"_a.none() = nb::none());
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

}  // namespace

void bind_run(nb::module_ &m) {
  bind_pool(m);
  bind_readings(m);
  bind_mapping(m);
  bind_matrix(m);
  bind_model(m);
  bind_stored(m);
  bind_passes(m);
}

}  // namespace bitsmith

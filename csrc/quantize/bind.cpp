#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <tuple>

#include "absmax.h"
#include "arrays.h"
#include "isa.h"
#include "isas.h"
#include "types.h"

namespace nb = nanobind;

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)                \
  namespace isa {                            \
  extern const Kernels kKernels;             \
  extern const AbsmaxKernels kAbsmaxKernels; \
  }
BITSMITH_FLOAT_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

// The kernels of the richest instruction set that `isa` contains. Sets that only add integer instructions have none.
const Kernels &kernels(Isa isa) {
  const Kernels *found = &generic::kKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

const AbsmaxKernels &absmax_kernels(Isa isa) {
  const AbsmaxKernels *found = &generic::kAbsmaxKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kAbsmaxKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

Type type_named(const std::string &name) {
  for (size_t i = 0; i < std::size(kTypes); ++i) {
    if (name == kTypes[i].name) return static_cast<Type>(i);
  }
  refuse("no ggml type of the core is called '" + name + "'");
}

class Quantizer {
 public:
  Quantizer(const std::string &type, std::vector<float> targets, std::vector<float> divisors, std::vector<int> reach,
            int rounds, std::vector<float> scales, const std::string &isa)
      : search_{type_named(type), std::move(targets), std::move(divisors), std::move(reach), rounds, std::move(scales)},
        kernels_(kernels(isa.empty() ? chosen_isa() : isa_named(isa))) {
    const bool micro = type == "mxfp4" || type == "nvfp4", two_level = group() > facts(search_.type).block && !micro;
    if (micro && (search_.scales.empty() || search_.scales.size() > 256)) refuse(type + " needs 1 to 256 scales");
    if (two_level && search_.divisors.empty()) refuse(type + " needs at least one divisor");
    if (two_level && search_.reach.size() != 1) refuse(type + " needs one reach");
  }

  void fit(const Read &w, const std::optional<Read> &columns, const std::optional<Write> &d,
           const std::optional<Write> &m, const std::optional<Write> &scales, const std::optional<Write> &mins) const {
    if (w.ndim() != 2) refuse("the weights have " + text(w.ndim()) + " dimensions; expected [rows, cols]");
    const auto rows = static_cast<int64_t>(w.shape(0)), cols = static_cast<int64_t>(w.shape(1));
    if (w.dtype() != nb::dtype<float>()) refuse("the weights are not float32");
    check_row(cols);
    const int64_t groups = cols / group(), blocks = cols / facts(search_.type).block;
    const Weights weights{reinterpret_cast<const uint8_t *>(read<float>(w, "w", {rows, cols})),
                          Float::f32,
                          rows,
                          cols,
                          nullptr,
                          columns_of(columns, cols)};
    const Fitted to{write<uint16_t>(d, "d", {rows, groups}), write<uint16_t>(m, "m", {rows, groups}),
                    write<uint8_t>(scales, "scales", {rows, blocks}), write<uint8_t>(mins, "mins", {rows, blocks})};
    nb::gil_scoped_release released;
    if (rows) kernels_.fit(search_, weights, to);
  }

  std::tuple<float, double, double> encode(const Read &data, const std::string &type,
                                           const std::optional<Read> &columns, const std::optional<Read> &order,
                                           bool reference, const Write &out) const {
    if (data.ndim() != 2) refuse("the weights have " + text(data.ndim()) + " dimensions; expected [rows, bytes]");
    const Float from = float_named(type);
    const int64_t size = from == Float::f32 ? 4 : 2;
    const auto rows = static_cast<int64_t>(data.shape(0)), bytes = static_cast<int64_t>(data.shape(1));
    if (bytes % size) refuse("a row of " + text(bytes) + " bytes is no whole number of weights");
    const int64_t cols = bytes / size;
    check_row(cols);
    if (reference && (search_.type > Type::q5_1 || columns)) {
      refuse("ggml's reference is for q8_0, q4_0, q4_1, q5_0 and q5_1 without column weights");
    }
    const int64_t *rows_in_order = order ? read<int64_t>(*order, "order", {rows}) : nullptr;
    for (int64_t i = 0; rows_in_order && i < rows; ++i) {
      if (rows_in_order[i] < 0 || rows_in_order[i] >= rows) {
        refuse("row " + text(rows_in_order[i]) + " in the order of " + text(rows) + " rows");
      }
    }
    const Weights weights{
        read<uint8_t>(data, "data", {rows, bytes}), from, rows, cols, rows_in_order, columns_of(columns, cols)};
    uint8_t *to = write<uint8_t>(out, "out", {rows, cols / group() * facts(search_.type).bytes});
    nb::gil_scoped_release released;
    const Tally tally = rows ? kernels_.encode(search_, weights, reference, to) : Tally{};
    return {tally.largest, tally.squared_error, tally.squared_weight};
  }

 private:
  int64_t group() const { return facts(search_.type).group; }

  void check_row(int64_t cols) const {
    if (cols < 1 || cols % group()) {
      refuse(std::string(facts(search_.type).name) + " needs rows whose length divides by " + text(group()) +
             "; these have " + text(cols) + " weights");
    }
  }

  Search search_;
  const Kernels &kernels_;
};

std::tuple<float, double, double> round_codebook(const Read &data, const std::string &type, int block,
                                                 const Read &table, const Read &patterns, const Write &out,
                                                 const Write &absmax, const std::optional<Read> &order,
                                                 const std::optional<Read> &scales, const std::string &isa) {
  if (block < 16 || block % 16 || block > 4096) refuse("blocks of " + text(block) + "; expected 16, 32, .. 4096");
  const Weights w = stored_weights(data, type, order, block);
  const float *values = read<float>(table, "table", {16});
  float middles[15];
  for (int i = 0; i < 15; ++i) middles[i] = (values[i + 1] + values[i]) * 0.5f;
  const Codebook book{block, values, middles, read<uint8_t>(patterns, "patterns", {16})};
  const bool packed = out.ndim() == 2 && static_cast<int64_t>(out.shape(1)) * 2 == w.cols;
  uint8_t *to = write<uint8_t>(out, "out", {w.rows, packed ? w.cols / 2 : w.cols});
  const CodebookOut found{packed ? nullptr : to, packed ? to : nullptr,
                          write<float>(absmax, "absmax", {w.rows, w.cols / block})};
  const float *known = scales ? read<float>(*scales, "scales", {w.rows, w.cols / block}) : nullptr;
  const AbsmaxKernels &kernels = absmax_kernels(isa.empty() ? chosen_isa() : isa_named(isa));
  nb::gil_scoped_release released;
  const Tally tally = kernels.codebook(book, w, known, found);
  return {tally.largest, tally.squared_error, tally.squared_weight};
}

std::tuple<float, double, double> round_rows(const Read &data, const std::string &type, const Write &out,
                                             const Write &absmax, const std::optional<Read> &order,
                                             const std::string &isa) {
  const Weights w = stored_weights(data, type, order, 16);
  int8_t *to = write<int8_t>(out, "out", {w.rows, w.cols});
  float *largest = write<float>(absmax, "absmax", {w.rows});
  const AbsmaxKernels &kernels = absmax_kernels(isa.empty() ? chosen_isa() : isa_named(isa));
  nb::gil_scoped_release released;
  const Tally tally = kernels.rows(w, to, largest);
  return {tally.largest, tally.squared_error, tally.squared_weight};
}

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_quantize(nb::module_ &m) {
  using namespace nb::literals;
  using quantize::Quantizer;
  m.def("round_codebook", &quantize::round_codebook, "data"_a, "type"_a, nb::kw_only(), "block"_a, "table"_a,
        "patterns"_a, "out"_a, "absmax"_a, "order"_a.none() = nb::none(), "scales"_a.none() = nb::none(), "isa"_a = "",
        "Codes of stored weights on a table of 16 values, scaled by the absmax of each block; see fourbit.py.\n"
        "out: uint8, codes [rows, cols] or patterns [rows, cols / 2], the first in the upper half. scales: what the "
        "error is computed with. Returns what Quantizer.encode does.");
  m.def("round_rows", &quantize::round_rows, "data"_a, "type"_a, nb::kw_only(), "out"_a, "absmax"_a,
        "order"_a.none() = nb::none(), "isa"_a = "",
        "int8 codes of stored weights with one absmax a row; see rowabsmax.py. Returns what Quantizer.encode does.");
  nb::class_<Quantizer>(m, "Quantizer",
                        "The search, rounding and packing of one ggml type; see quant/formats/core_fit.py.")
      .def(nb::init<const std::string &, std::vector<float>, std::vector<float>, std::vector<int>, int,
                    std::vector<float>, const std::string &>(),
           "type"_a, nb::kw_only(), "targets"_a, "divisors"_a, "reach"_a, "rounds"_a, "scales"_a, "isa"_a = "",
           "isa: the chosen one where it is empty. Raises ValueError for settings the type cannot work with.")
      .def("fit", &Quantizer::fit, "w"_a, nb::kw_only(), "columns"_a.none(), "d"_a.none() = nb::none(),
           "m"_a.none() = nb::none(), "scales"_a.none() = nb::none(), "mins"_a.none() = nb::none(),
           "Write the parameters of float32 weights [rows, cols] into the arrays given.")
      .def("encode", &Quantizer::encode, "data"_a, "type"_a, nb::kw_only(), "columns"_a.none(), "order"_a.none(),
           "reference"_a, "out"_a,
           "Write ggml blocks into `out`, uint8 [rows, row bytes], for stored weights `data`, uint8 [rows, bytes].\n"
           "Returns the largest magnitude (beyond 65504, or NaN, the rest means nothing), and the sums of squared "
           "errors and weights.");
}

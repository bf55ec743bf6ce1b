// Searches in the code books of IQ1, IQ2 and IQ3, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "arrays.h"
#include "bind.h"
#include "books.h"
#include "isa.h"
#include "isas.h"

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)            \
  namespace isa {                        \
  extern const BookKernels kBookKernels; \
  }
BITSMITH_FLOAT_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

const BookKernels &book_kernels(Isa isa) {
  const BookKernels *found = &generic::kBookKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kBookKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

Book book_named(const std::string &name) {
  for (int i = 0; i < kBookCount; ++i)
    if (name == kBooks[i].name) return static_cast<Book>(i);
  refuse("no code book of the core is called '" + name + "'");
}

class BookQuantizer {
 public:
  BookQuantizer(const std::string &type, const std::string &isa)
      : book_(book_named(type)), kernels_(book_kernels(isa.empty() ? chosen_isa() : isa_named(isa))) {}

  float round(const Read &w, const std::optional<Read> &columns, const Write &codes, const Write &d,
              const Write &scales, const std::optional<Write> &shifts) const {
    const Weights weights = floats(w, columns, kSuper);
    const int64_t rows = weights.rows, cols = weights.cols;
    if (shifted() != shifts.has_value()) refuse("shifts are for iq1_s, which needs them");
    const BookCodes to{write<int32_t>(codes, "codes", {rows, cols / kVector}),
                       write<uint16_t>(d, "d", {rows, cols / kSuper}),
                       write<uint8_t>(scales, "scales", {rows, cols / facts(book_).block}),
                       write<uint8_t>(shifts, "shifts", {rows, cols / 32})};
    nb::gil_scoped_release released;
    return rows ? kernels_.round(book_, weights, to) : 0;
  }

  void nearest(const Read &w, const std::optional<Read> &columns, int block, const Read &scales,
               const std::optional<Read> &shifts, const Write &codes) const {
    if (block < kVector || block % kVector) refuse("scales are for blocks of 8, 16, .. weights");
    const Weights weights = floats(w, columns, block);
    const int64_t rows = weights.rows, cols = weights.cols;
    if (shifted() != shifts.has_value()) refuse("shifts are for iq1_s, which needs them");
    const BookScales given{read<float>(scales, "scales", {rows, cols / block}),
                           shifts ? read<uint8_t>(*shifts, "shifts", {rows, cols / block}) : nullptr};
    auto *to = write<int32_t>(codes, "codes", {rows, cols / kVector});
    nb::gil_scoped_release released;
    if (rows) kernels_.nearest(book_, weights, block, given, to);
  }

  std::tuple<float, double, double> encode(const Read &data, const std::string &type,
                                           const std::optional<Read> &columns, const std::optional<Read> &order,
                                           const Write &out) const {
    Weights weights = stored_weights(data, type, order, kSuper);
    weights.columns = columns_of(columns, weights.cols);
    auto *to = write<uint8_t>(out, "out", {weights.rows, weights.cols / kSuper * facts(book_).bytes});
    nb::gil_scoped_release released;
    const Tally tally = weights.rows ? kernels_.encode(book_, weights, to) : Tally{};
    return {tally.largest, tally.squared_error, tally.squared_weight};
  }

 private:
  bool shifted() const { return facts(book_).shift == Shift::by_block; }

  // float32 weights [rows, cols]
  static Weights floats(const Read &w, const std::optional<Read> &columns, int multiple) {
    if (w.ndim() != 2) refuse("the weights have " + text(w.ndim()) + " dimensions; expected [rows, cols]");
    const auto rows = static_cast<int64_t>(w.shape(0)), cols = static_cast<int64_t>(w.shape(1));
    if (w.dtype() != nb::dtype<float>()) refuse("the weights are not float32");
    if (cols < 1 || cols % multiple)
      refuse("rows of " + text(cols) + " weights do not divide into blocks of " + text(multiple));
    return {reinterpret_cast<const uint8_t *>(read<float>(w, "w", {rows, cols})),
            Float::f32,
            rows,
            cols,
            nullptr,
            columns_of(columns, cols)};
  }

  Book book_;
  const BookKernels &kernels_;
};

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_books(nanobind::module_ &m) {
  namespace nb = nanobind;
  using namespace nb::literals;
  using quantize::BookQuantizer;
  nb::class_<BookQuantizer>(m, "BookQuantizer",
                            "The search in the code book of a ggml type; see quant/formats/code_books.py.")
      .def(nb::init<const std::string &, const std::string &>(), "type"_a, nb::kw_only(), "isa"_a = "")
      .def("round", &BookQuantizer::round, "w"_a, nb::kw_only(), "columns"_a.none(), "codes"_a, "d"_a, "scales"_a,
           "shifts"_a.none() = nb::none(),
           "Write codes and parameters of float32 weights [rows, cols]; returns the largest magnitude.")
      .def("nearest", &BookQuantizer::nearest, "w"_a, nb::kw_only(), "columns"_a.none(), "block"_a, "scales"_a,
           "shifts"_a.none() = nb::none(), "codes"_a,
           "Write the codes nearest to float32 weights [rows, cols], with a scale for every `block` columns.")
      .def("encode", &BookQuantizer::encode, "data"_a, "type"_a, nb::kw_only(), "columns"_a.none(), "order"_a.none(),
           "out"_a, "Write ggml blocks, as Quantizer.encode does; returns the same.");
}

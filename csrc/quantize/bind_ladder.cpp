#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "isa.h"
#include "isas.h"
#include "ladder.h"
#include "pool.h"

namespace nb = nanobind;

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)                \
  namespace isa {                            \
  extern const LadderKernels kLadderKernels; \
  }
BITSMITH_FLOAT_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

const LadderKernels &ladder_kernels(Isa isa) {
  const LadderKernels *found = &generic::kLadderKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kLadderKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

using OptionalRead = std::optional<Read>;
using OptionalWrite = std::optional<Write>;

class ScaleSearch {
 public:
  ScaleSearch(std::vector<float> table, std::vector<float> ratios, bool asymmetric, float top, float most,
              const std::string &precision, int64_t block, bool turns, const std::string &isa)
      : kernels_(ladder_kernels(isa.empty() ? chosen_isa() : isa_named(isa))) {
    if (table.size() < 2 || table.size() > 256) refuse("a table has 2 to 256 levels");
    if (ratios.empty()) refuse("at least one ratio is needed");
    if (block < 0) refuse("a block has at least one weight, or is 0 for a whole row");
    ladder_.counts = table[0] == std::floor(table[0]);
    for (size_t i = 1; i < table.size(); ++i) ladder_.counts = ladder_.counts && table[i] - table[i - 1] == 1.0f;
    ladder_.precision = precision == "f32" ? Float::f32 : precision == "f16" ? Float::f16 : Float::bf16;
    if (ladder_.precision == Float::bf16 && precision != "bf16") refuse("scales are f32, f16 or bf16");
    if (turns && asymmetric) refuse("scales of asymmetric formats have no sign");
    ladder_.asymmetric = asymmetric;
    ladder_.turns = turns;
    ladder_.top = top;
    ladder_.most = most;
    ladder_.half = -table[0];
    ladder_.block = block;
    ladder_.table = std::move(table);
    ladder_.ratios = std::move(ratios);
  }

  void fit(const Read &w, const OptionalRead &importance, int threads, const OptionalWrite &scale,
           const OptionalWrite &zero, const OptionalWrite &codes, const OptionalWrite &values) const {
    const LadderRows rows = rows_of(w, importance, std::nullopt);
    const Ladder ladder = for_rows(rows.cols);
    const LadderOut out = out_of(ladder, rows, scale, zero, codes, values);
    nb::gil_scoped_release released;
    each(rows.rows, threads, [&](int, int64_t first, int64_t count) { kernels_.fit(ladder, rows, first, count, out); });
  }

  void clip(const Read &w, const Read &gram, int threads, const OptionalWrite &scale, const OptionalWrite &zero) const {
    const LadderRows rows = rows_of(w, std::nullopt, std::nullopt);
    const Ladder ladder = for_rows(rows.cols);
    const float *g = read<float>(gram, "gram", {rows.cols, rows.cols});
    const LadderOut out = out_of(ladder, rows, scale, zero, std::nullopt, std::nullopt);
    nb::gil_scoped_release released;
    each(rows.rows, threads,
         [&](int, int64_t first, int64_t count) { kernels_.clip(ladder, rows, g, first, count, out); });
  }

  double loss(const Read &w, const Read &factors, const OptionalRead &importance, const Read &gram, int threads) const {
    const LadderRows rows = rows_of(w, importance, factors);
    const Ladder ladder = for_rows(rows.cols);
    const float *g = read<float>(gram, "gram", {rows.cols, rows.cols});
    std::vector<double> losses(static_cast<size_t>((rows.rows + kLadderRows - 1) / kLadderRows));
    nb::gil_scoped_release released;
    each(rows.rows, threads, [&](int piece, int64_t first, int64_t count) {
      losses[piece] = kernels_.loss(ladder, rows, g, first, count);
    });
    double total = 0;
    for (double each : losses) total += each;
    return total;
  }

 private:
  static LadderRows rows_of(const Read &w, const OptionalRead &importance, const OptionalRead &factors) {
    if (w.ndim() != 2) refuse("the weights have " + text(w.ndim()) + " dimensions; expected [rows, cols]");
    const auto rows = static_cast<int64_t>(w.shape(0)), cols = static_cast<int64_t>(w.shape(1));
    return {read<float>(w, "w", {rows, cols}), rows, cols, factors ? read<float>(*factors, "factors", {cols}) : nullptr,
            importance ? read<float>(*importance, "importance", {cols}) : nullptr};
  }

  Ladder for_rows(int64_t cols) const {
    Ladder ladder = ladder_;
    if (!ladder.block) ladder.block = cols;
    if (cols < 1 || cols % ladder.block) {
      refuse("rows of " + text(cols) + " weights do not divide into blocks of " + text(ladder.block));
    }
    return ladder;
  }

  static LadderOut out_of(const Ladder &ladder, const LadderRows &rows, const OptionalWrite &scale,
                          const OptionalWrite &zero, const OptionalWrite &codes, const OptionalWrite &values) {
    const int64_t blocks = rows.cols / ladder.block;
    uint8_t *scales = ladder.precision == Float::f32
                          ? reinterpret_cast<uint8_t *>(write<float>(scale, "scale", {rows.rows, blocks}))
                          : reinterpret_cast<uint8_t *>(write<uint16_t>(scale, "scale", {rows.rows, blocks}));
    return {scales, write<uint8_t>(zero, "zero", {rows.rows, blocks}),
            write<uint8_t>(codes, "codes", {rows.rows, rows.cols}),
            write<float>(values, "values", {rows.rows, rows.cols})};
  }

  template <class Body>
  static void each(int64_t rows, int threads, const Body &body) {
    const int pieces = static_cast<int>((rows + kLadderRows - 1) / kLadderRows);
    Pool pool(std::max(1, std::min(threads, pieces)));
    pool.run(pieces, [&](int piece) {
      const int64_t first = static_cast<int64_t>(piece) * kLadderRows;
      body(piece, first, std::min<int64_t>(kLadderRows, rows - first));
    });
  }

  Ladder ladder_;
  const LadderKernels &kernels_;
};

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_ladder(nanobind::module_ &m) {
  using namespace nb::literals;
  using quantize::ScaleSearch;
  const auto none = nb::none();
  nb::class_<ScaleSearch>(
      m, "ScaleSearch", "The search for scales of integers in groups and of tables; see quant/formats/core_ladder.py.")
      .def(nb::init<std::vector<float>, std::vector<float>, bool, float, float, const std::string &, int64_t, bool,
                    const std::string &>(),
           "table"_a, nb::kw_only(), "ratios"_a, "asymmetric"_a, "top"_a, "most"_a, "precision"_a, "block"_a,
           "signed"_a = false, "isa"_a = "")
      .def("fit", &ScaleSearch::fit, "w"_a, "importance"_a.none(), nb::kw_only(), "threads"_a, "scale"_a.none() = none,
           "zero"_a.none() = none, "codes"_a.none() = none, "values"_a.none() = none,
           "Write the best parameters of float32 weights [rows, cols], their nearest codes and their values, where "
           "arrays are given.")
      .def("clip", &ScaleSearch::clip, "w"_a, "gram"_a, nb::kw_only(), "threads"_a, "scale"_a.none() = none,
           "zero"_a.none() = none, "The same by the error of the outputs; gram: float32 [cols, cols].")
      .def("loss", &ScaleSearch::loss, "w"_a, "factors"_a, "importance"_a.none(), "gram"_a, nb::kw_only(), "threads"_a,
           "The sum of e G e^T over rows: e is what the best parameters of w * factors lose, divided by the factors.");
}

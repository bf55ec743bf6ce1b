#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "arrays.h"
#include "bind.h"
#include "isa.h"
#include "isas.h"
#include "pool.h"
#include "slab.h"

namespace nb = nanobind;

namespace bitsmith::quantize {

#define BITSMITH_DECLARE(isa)            \
  namespace isa {                        \
  extern const SlabKernels kSlabKernels; \
  }
BITSMITH_FLOAT_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

namespace {

const SlabKernels &slab_kernels(Isa isa) {
  const SlabKernels *found = &generic::kSlabKernels;
#define BITSMITH_TAKE(richer) \
  if (isa >= Isa::richer) found = &richer::kSlabKernels;
  BITSMITH_FLOAT_ISAS(BITSMITH_TAKE)
#undef BITSMITH_TAKE
  return *found;
}

using OptionalRead = std::optional<Read>;

ColumnGrid grid_of(const Read &table) {
  const auto levels = static_cast<int64_t>(table.ndim() == 1 ? table.shape(0) : 0);
  if (levels < 2 || levels > 256) refuse("a table has 2 to 256 levels");
  ColumnGrid grid{};
  grid.table = read<float>(table, "table", {levels});
  grid.levels = static_cast<int>(levels);
  grid.counts = grid.table[0] == static_cast<float>(static_cast<int>(grid.table[0]));
  for (int i = 1; i < grid.levels; ++i) grid.counts = grid.counts && grid.table[i] - grid.table[i - 1] == 1.0f;
  return grid;
}

class Factor {
 public:
  Factor(const Read &hessian, const Read &feedback, const Read &pivots, const Read &added, const OptionalRead &order)
      : cols_(hessian.ndim() == 2 ? static_cast<int64_t>(hessian.shape(0)) : 0) {
    if (cols_ < 1) refuse("a Hessian is [cols, cols]");
    const auto copied = [](const float *from, int64_t count) { return std::vector<float>(from, from + count); };
    // kept alive by the caller's arrays, see `bind_slab`
    h_.hessian = read<float>(hessian, "hessian", {cols_, cols_});
    h_.feedback = read<float>(feedback, "feedback", {cols_, cols_});
    pivots_ = copied(read<float>(pivots, "pivots", {cols_}), cols_);
    added_ = copied(read<float>(added, "added", {cols_}), cols_);
    if (order) {
      const int64_t *from = read<int64_t>(*order, "order", {cols_});
      order_.assign(from, from + cols_);
      std::vector<bool> seen(cols_);
      for (int64_t place : order_) {
        if (place < 0 || place >= cols_ || seen[place]) refuse("order is no permutation of the columns");
        seen[place] = true;
      }
    }
    h_.pivots = pivots_.data();
    h_.added = added_.data();
    h_.order = order ? order_.data() : nullptr;
  }

  const Hessian &get() const { return h_; }
  int64_t cols() const { return cols_; }

 private:
  int64_t cols_;
  Hessian h_{};
  std::vector<float> pivots_, added_;
  std::vector<int64_t> order_;
};

class Slab {
 public:
  Slab(const Read &weights, const Factor &factor, int threads, const std::string &isa)
      : factor_(factor),
        kernels_(slab_kernels(isa.empty() ? chosen_isa() : isa_named(isa))),
        cols_(factor.cols()),
        pool_(std::max(1, threads)) {
    if (weights.ndim() != 2) refuse("the weights have " + text(weights.ndim()) + " dimensions; expected [rows, cols]");
    rows_ = static_cast<int64_t>(weights.shape(0));
    if (rows_ < 1) refuse("there are no rows");
    const float *from = read<float>(weights, "weights", {rows_, cols_});
    const int64_t tiles = (rows_ + kSlabRows - 1) / kSlabRows, size = cols_ * kSlabRows;
    weights_.resize(tiles * size);
    levels_.resize(tiles * size);
    error_.resize(tiles * size);
    slope_.resize(tiles * size);
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *) { kernels_.load(tile, from, tile.weights); });
  }

  void feedback(const Read &table, const Read &scale, const OptionalRead &offset) {
    const Grid grid(table, scale, offset, *this);
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *scratch) { kernels_.feedback(tile, factor_.get(), grid.get, scratch); });
  }

  void nearest(const Read &table, const Read &scale, const OptionalRead &offset, const Write &codes,
               const Write &error) {
    const Grid grid(table, scale, offset, *this);
    auto *to = write<uint8_t>(codes, "codes", {rows_, cols_});
    auto *lost = write<double>(error, "error", {rows_});
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *scratch) {
      kernels_.nearest(tile, grid.get, tile.slope, to);
      kernels_.output_error(tile, factor_.get(), tile.slope, lost, scratch);
    });
  }

  void output_error(const Write &error) {
    auto *lost = write<double>(error, "error", {rows_});
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *scratch) {
      kernels_.output_error(tile, factor_.get(), tile.error, lost, scratch);
    });
  }

  void slope(int64_t start, int64_t stop) {
    if (start < 0 || stop > cols_ || start >= stop) refuse("no columns " + text(start) + " to " + text(stop));
    start_ = start;
    stop_ = stop;
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *) { kernels_.slope(tile, factor_.get(), start, stop); });
  }

  // sums: float32 [4, rows]
  void moments(int64_t left, int64_t block, const Write &sums) {
    check_block(left, block);
    auto *to = write<float>(sums, "sums", {4, rows_});
    const Moments found{to, to + rows_, to + 2 * rows_, to + 3 * rows_};
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *scratch) {
      kernels_.moments(tile, factor_.get(), start_, left, block, found, scratch);
    });
  }

  void move(int64_t left, const Read &table, const Read &scale, const OptionalRead &offset, const Read &new_scale,
            const OptionalRead &new_offset) {
    const Grid grid(table, scale, offset, *this);
    check_block(left, grid.get.block);
    const float *scales = read<float>(new_scale, "new_scale", {rows_});
    if (!offset != !new_offset) refuse("new_offset goes with offset");
    const float *offsets = new_offset ? read<float>(*new_offset, "new_offset", {rows_}) : nullptr;
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *scratch) {
      kernels_.move(tile, factor_.get(), grid.get, start_, stop_, left, scales, offsets, scratch);
    });
  }

  void recode(const Read &table, const Read &scale, const OptionalRead &offset) {
    const Grid grid(table, scale, offset, *this);
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *scratch) {
      kernels_.recode(tile, factor_.get(), grid.get, start_, stop_, scratch);
    });
  }

  void codes(const Read &table, const Write &codes) {
    auto *to = write<uint8_t>(codes, "codes", {rows_, cols_});
    const ColumnGrid grid = grid_of(table);
    nb::gil_scoped_release released;
    each([&](const SlabTile &tile, float *) { kernels_.codes(tile, grid, to); });
  }

 private:
  // scale, offset: float32 [blocks, rows]
  struct Grid {
    ColumnGrid get;
    Grid(const Read &table, const Read &scale, const OptionalRead &offset, const Slab &slab) : get(grid_of(table)) {
      const auto blocks = static_cast<int64_t>(scale.ndim() == 2 ? scale.shape(0) : 0);
      if (blocks < 1 || slab.cols_ % blocks) refuse(text(blocks) + " blocks do not divide the columns");
      get.scale = read<float>(scale, "scale", {blocks, slab.rows_});
      get.offset = offset ? read<float>(*offset, "offset", {blocks, slab.rows_}) : nullptr;
      get.block = slab.cols_ / blocks;
    }
  };

  void check_block(int64_t left, int64_t block) const {
    if (left < start_ || block < 1 || left + block > stop_) refuse("the block lies outside of the slope's columns");
  }

  template <class Body>
  void each(const Body &body) {
    const int64_t size = cols_ * kSlabRows;
    const int tiles = static_cast<int>((rows_ + kSlabRows - 1) / kSlabRows);
    pool_.run(tiles, [&](int i) {
      thread_local std::vector<float> scratch;
      scratch.resize(static_cast<size_t>(cols_ + kStep) * kSlabRows);
      const int64_t first = static_cast<int64_t>(i) * kSlabRows;
      body(SlabTile{&weights_[i * size], &levels_[i * size], &error_[i * size], &slope_[i * size], first,
                    std::min<int64_t>(kSlabRows, rows_ - first), rows_, cols_},
           scratch.data());
    });
  }

  const Factor &factor_;
  const SlabKernels &kernels_;
  int64_t rows_ = 0, cols_, start_ = 0, stop_ = 0;
  std::vector<float> weights_, levels_, error_, slope_;
  Pool pool_;
};

// tr(e gram e^T) for the errors e of weights [rows, cols] with these factors and this grid; see `SlabKernels::loss`
double grid_loss(const Read &weights, const Read &factors, const Read &table, const Read &scale,
                 const OptionalRead &offset, const Read &gram, int threads, const std::string &isa) {
  if (weights.ndim() != 2) refuse("the weights have " + text(weights.ndim()) + " dimensions; expected [rows, cols]");
  const auto rows = static_cast<int64_t>(weights.shape(0)), cols = static_cast<int64_t>(weights.shape(1));
  const auto blocks = static_cast<int64_t>(scale.ndim() == 2 ? scale.shape(0) : 0);
  if (blocks < 1 || cols % blocks) refuse(text(blocks) + " blocks do not divide the columns");
  ColumnGrid grid = grid_of(table);
  grid.scale = read<float>(scale, "scale", {blocks, rows});
  grid.offset = offset ? read<float>(*offset, "offset", {blocks, rows}) : nullptr;
  grid.block = cols / blocks;
  const float *from = read<float>(weights, "weights", {rows, cols}), *columns = read<float>(factors, "factors", {cols});
  const float *sums = read<float>(gram, "gram", {cols, cols});
  const SlabKernels &kernels = slab_kernels(isa.empty() ? chosen_isa() : isa_named(isa));
  nb::gil_scoped_release released;
  std::vector<double> losses(static_cast<size_t>((rows + kSlabRows - 1) / kSlabRows));
  Pool pool(std::max(1, threads));
  pool.run(static_cast<int>(losses.size()), [&](int piece) {
    thread_local std::vector<float> room;
    room.resize(static_cast<size_t>(2 * cols + kStep) * kSlabRows);
    const int64_t first = static_cast<int64_t>(piece) * kSlabRows;
    const SlabTile tile{room.data(), nullptr, nullptr, nullptr, first, std::min<int64_t>(kSlabRows, rows - first),
                        rows,        cols};
    kernels.load(tile, from, tile.weights);
    losses[piece] = kernels.loss(tile, grid, columns, sums, room.data() + cols * kSlabRows);
  });
  double total = 0;
  for (double each : losses) total += each;
  return total;
}

}  // namespace
}  // namespace bitsmith::quantize

void bitsmith::bind_slab(nb::module_ &m) {
  using namespace nb::literals;
  using quantize::Factor;
  using quantize::Slab;
  const auto none = nb::none();
  m.def("grid_loss", &quantize::grid_loss, "w"_a, "factors"_a, "table"_a, "scale"_a, "offset"_a.none(), "gram"_a,
        nb::kw_only(), "threads"_a, "isa"_a = "",
        "tr(e gram e^T) for e the error of w [rows, cols] if its columns are multiplied by factors [cols], take their "
        "nearest values, and are divided again; the grid as for `Slab`.");
  nb::class_<Factor>(m, "Factor", "A Hessian and its factor, float32; see quant/rounders/hessian.py.")
      .def(nb::init<const quantize::Read &, const quantize::Read &, const quantize::Read &, const quantize::Read &,
                    const quantize::OptionalRead &>(),
           "hessian"_a, "feedback"_a, "pivots"_a, "added"_a, "order"_a.none(), nb::keep_alive<1, 2>(),
           nb::keep_alive<1, 3>(),
           "hessian, feedback: [cols, cols]. order: int64 [cols]; None where columns are rounded from left to right.");
  nb::class_<Slab>(m, "Slab",
                   "Rows that are rounded under a Hessian; see quant/rounders/core_slab.py. Grids: table float32 "
                   "[levels], scale and offset float32 [blocks, rows].")
      .def(nb::init<const quantize::Read &, const Factor &, int, const std::string &>(), "weights"_a, "factor"_a,
           nb::kw_only(), "threads"_a, "isa"_a = "", nb::keep_alive<1, 3>())
      .def("feedback", &Slab::feedback, "table"_a, "scale"_a, "offset"_a.none(), "GPTQ's pass.")
      .def("nearest", &Slab::nearest, "table"_a, "scale"_a, "offset"_a.none(), nb::kw_only(), "codes"_a, "error"_a,
           "Write the nearest codes, uint8 [rows, cols], and the error of their outputs, float64 [rows].")
      .def("output_error", &Slab::output_error, "error"_a, "Write the error of the outputs, float64 [rows].")
      .def("slope", &Slab::slope, "start"_a, "stop"_a, "Compute the slope of the error in these columns.")
      .def("moments", &Slab::moments, "left"_a, "block"_a, "sums"_a,
           "Write what moves of a block's scale and offset change: first, sum, square, mass, float32 [4, rows].")
      .def("move", &Slab::move, "left"_a, "table"_a, "scale"_a, "offset"_a.none(), nb::kw_only(), "new_scale"_a,
           "new_offset"_a.none(), "Give a block another scale and offset, float32 [rows].")
      .def("recode", &Slab::recode, "table"_a, "scale"_a, "offset"_a.none(),
           "Set the codes of the columns of the slope, one by one.")
      .def("codes", &Slab::codes, "table"_a, "codes"_a, "Write the codes, uint8 [rows, cols].");
}

#include "compute.h"

#include <algorithm>

namespace bitsmith {
namespace {

constexpr int kFloatRows = 4;     // from so many rows on, float matrices are turned into strips
constexpr int kTiledRows = 8;     // from so many rows on, tiles are faster
constexpr int kTiledPanels = 16;  // of a piece on tiles at most, which reads its inputs once

}  // namespace

// Whether products with w are taken in bfloat16.
bool Compute::halves(const Matrix &w) const {
  return !w.packed() && !exact_ && kernels_.floats_rows_rounded && w.floats().type != FloatType::f32 &&
         w.cols() % 2 == 0;
}

// Whether products of so many rows, of those that are not computed as if each came alone, are taken on tiles.
bool Compute::tiled(const Linear &linear, int others) const {
  const Matrix &w = *linear.weight;
  return kernels_.panels_tiles && others >= (strict_ ? 1 : kTiledRows) && !exact_ && !linear.mixed() &&
         (w.packed() || w.floats().type != FloatType::f32);
}

Roundings Compute::roundings(const std::vector<const Linear *> &linears, int rows, int single) const {
  Roundings found;
  if (!strict_ && rows - single < kFloatRows) single = rows;
  const int others = rows - single;
  found.single = single;
  found.rest = fine_;
  for (const Linear *linear : linears) {
    if (linear->mixed()) {
      found.threshold = linear->threshold;
      found.values |= exact_ || !linear->weight->packed();
      continue;
    }
    const bool tiles = tiled(*linear, others), rounded = linear->weight->packed() && !exact_;
    found.tiles |= tiles;
    if (rounded) found.fine = std::max(found.fine, fine_ && !tiles ? rows : single);
    found.blocks |= rounded && others > 0 && !tiles && !fine_;
    found.bfloats |= others > 0 && halves(*linear->weight) && !tiles;
  }
  return found;
}

void Compute::round(const float *x, size_t stride, int rows, int cols, const std::vector<const Linear *> &linears) {
  rounded_.start(cols);
  rounded_.add(roundings(linears, rows), rows);
  rounded_.reserve();
  each_row(rows, [&](int row) { rounded_.round(kernels_, 0, row, x + row * stride); });
}

// Groups of 16 rows of a matrix for one piece of work, of those that are left.
int Compute::panels_of_a_piece(const Product &product, int left) const {
  const int threads = pool_->threads(), single = rounded_.single(product.x.group);
  const int others = product.x.floats.count - single;
  if (others == 0 && single <= kFewRows) return next_piece(left, threads);
  if (!tiled(*product.linear, others)) return 2;  // as many as `floats_rows` takes
  return std::clamp(left / (3 * threads) / 2 * 2, 2, kTiledPanels);
}

// Ask memory for the first bytes of groups of rows of w that few rows will be multiplied with.
void Compute::fetch_start(const Matrix &w, int rows, int first) const {
  if (rows > kFewRows || !w.packed()) return;
  const uint8_t *from = w.panels().data + first * w.panels().panel_bytes();
  for (int at = 0; at < packed_reading_.far; at += 64) __builtin_prefetch(from + at, 0, 2);
}

void Compute::multiply(const Product *products, int count) {
  const Stopwatch watch(times_.products);
  pieces_.clear();
  int left = 0;
  for (int i = 0; i < count; ++i) {
    if (products[i].linear->mixed()) settle(products[i]);
    left += products[i].linear->weight->row_panels();
  }
  for (int i = 0; i < count; ++i) {
    const int panels = products[i].linear->weight->row_panels();
    for (int first = 0; first < panels;) {
      const int n = std::min(panels_of_a_piece(products[i], left), panels - first);
      pieces_.push_back({i, first, n});
      first += n;
      left -= n;
    }
  }
  pool_->run(static_cast<int>(pieces_.size()), [&](int at) {
    const Piece &piece = pieces_[at];
    const Product &product = products[piece.product];
    if (at + pool_->threads() < static_cast<int>(pieces_.size())) {
      const Piece &later = pieces_[at + pool_->threads()];  // most likely this thread's next
      fetch_start(*products[later.product].linear->weight, products[later.product].x.floats.count, later.first);
    }
    multiply_part(product.x, *product.linear, piece.first, piece.count, product.out + piece.first * kPanelRows,
                  product.stride);
  });
  for (int i = 0; i < count; ++i)
    if (products[i].linear->adapter.down) add_adapter(products[i]);
}

// Both factors are float32, and their inputs are not rounded.
void Compute::add_adapter(const Product &product) {
  const Matrix &down = *product.linear->adapter.down, &up = *product.linear->adapter.up;
  const int rows = product.x.floats.count, single = rounded_.single(product.x.group);
  const size_t rank = padded(down.rows()), width = padded(up.rows());
  float *narrow = scratch(Scratch::narrow, rows * rank), *added = scratch(Scratch::adapted, rows * width);
  pool_->run(down.row_panels(), [&](int panel) {
    multiply_exactly(product.x.floats, single, down, panel, 1, narrow + panel * kPanelRows, rank);
  });
  const Rows inner{narrow, rank, rows};
  const int step = 2, panels = up.row_panels();  // as many as `floats_rows` takes
  pool_->run((panels + step - 1) / step, [&](int piece) {
    const int first = piece * step, n = std::min(step, panels - first), column = first * kPanelRows;
    multiply_exactly(inner, single, up, first, n, added + column, width);
    const size_t columns = std::min(n * kPanelRows, up.rows() - column);
    for (int i = 0; i < rows; ++i) add(product.out + i * product.stride + column, added + i * width + column, columns);
  });
}

void Compute::multiply(const Linear &linear, const Input &x, float *out, size_t stride) {
  const Product product{&linear, x, out, stride};
  multiply(&product, 1);
  if (linear.bias.empty()) return;
  each_row(x.floats.count, [&](int row) { add(out + row * stride, linear.bias.data(), linear.bias.size()); });
}

// All rows of the input times `count` groups of 16 rows of one matrix.
void Compute::multiply_part(const Input &x, const Linear &linear, int first, int count, float *y, size_t stride) const {
  const Matrix &w = *linear.weight;
  if (linear.mixed()) return multiply_mixed(x, w, first, count, y, stride);
  const int all = x.floats.count, single = rounded_.single(x.group), others = all - single;
  const bool tiles = tiled(linear, others), packed = w.packed() && !exact_;
  if (!tiles && !packed && !(others > 0 && halves(w)))
    return multiply_exactly(x.floats, single, w, first, count, y, stride);
  const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
  const int fine = fine_ && !tiles ? all : single;
  if (packed && fine > 0) multiply_fine(rounded_.fine(x.group), fine, w, first, count, y, stride);
  if (!packed && single > 0) multiply_floats({x.floats.data, x.floats.stride, single}, w, first, count, y, stride);
  if (others == 0) return;
  y += single * stride;
  if (tiles && w.packed())
    kernels_.panels_tiles(w.panels(), first, count, rounded_.tiles(x.group), y, stride);
  else if (tiles)
    kernels_.floats_tiles(w.floats(), row, rows, rounded_.tiles(x.group), y, stride);
  else if (!packed)
    kernels_.floats_rows_rounded(w.floats(), row, rows, rounded_.bfloats(x.group), others, y, stride);
  else if (!fine_)
    kernels_.panels_rows(w.panels(), first, count, rounded_.blocks(x.group), others, y, stride);
}

// Rows that are rounded to 15 bits, times a packed matrix; each gives what it gives alone.
void Compute::multiply_fine(const FineRows &x, int rows, const Matrix &w, int first, int count, float *y,
                            size_t stride) const {
  if (rows == 1) return kernels_.panels_row(w.panels(), first, count, x.row(0), packed_reading_, y);
  kernels_.panels_few(w.panels(), first, count, x, rows, packed_reading_, y, stride);
}

// Rows that are not rounded, times a matrix of floats; each gives what it gives alone.
void Compute::multiply_floats(const Rows &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
  if (x.count == 1) return kernels_.floats_row(w.floats(), row, rows, x.data, float_reading_, y);
  kernels_.floats_few(w.floats(), row, rows, x, y, stride);
}

// Rows that are not rounded, times any matrix. The first `single` give what they give alone where it is one of floats.
void Compute::multiply_exactly(const Rows &x, int single, const Matrix &w, int first, int count, float *y,
                               size_t stride) const {
  if (w.packed() && x.count == 1)
    return kernels_.panels_row_exact(w.panels(), first, count, x.data, packed_reading_, y);
  if (w.packed()) return kernels_.panels_exact(w.panels(), first, count, x, y, stride);
  const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row), others = x.count - single;
  if (single > 0) multiply_floats({x.data, x.stride, single}, w, first, count, y, stride);
  if (others == 0) return;
  kernels_.floats_rows(w.floats(), row, rows, {x.data + single * x.stride, x.stride, others}, y + single * stride,
                       stride);
}

// The same of rows that LLM.int8() rounds: int8 with the codes of packed matrices, and columns with large inputs in
// float32.
void Compute::multiply_mixed(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  const MixedRows &in = rounded_.mixed(x.group);
  const int rows = x.floats.count;
  if (exact_ || !w.packed())
    return multiply_exactly(in.values(), rows < kFloatRows ? rows : 0, w, first, count, y, stride);
  const int large = static_cast<int>(in.columns().size());
  if (rows == 1)
    kernels_.panels_row(w.panels(), first, count, in.fine(), packed_reading_, y);
  else
    kernels_.panels_rows(w.panels(), first, count, in.codes(), rows, y, stride);
  if (large > 0) kernels_.panels_columns(w.panels(), first, count, in.columns().data(), large, in.kept(), y, stride);
}

// The second half of rounding, once all rows of a product's input have seen the first.
void Compute::settle(const Product &product) {
  MixedRows &in = rounded_.mixed(product.x.group);
  if (!in.gather()) return;
  const Rows &x = product.x.floats;
  each_row(x.count, [&](int row) { in.settle(kernels_, row, x.data + row * x.stride); });
}

}  // namespace bitsmith

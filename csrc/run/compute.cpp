#include "compute.h"

#include <algorithm>

namespace bitsmith {
namespace {

constexpr int kFewRows = 4;       // with fewer, float matrices are read once for each row
constexpr int kTiledRows = 8;     // from so many rows on, tiles are faster
constexpr int kTiledPanels = 16;  // of a piece on tiles at most, which reads its inputs once

}  // namespace

// Whether products with w are taken in bfloat16.
bool Compute::halves(const Matrix &w) const {
  return !w.packed() && !exact_ && kernels_.floats_rows_rounded && w.floats().type != FloatType::f32 &&
         w.cols() % 2 == 0;
}

// Whether products with a linear's matrix are taken on tiles.
bool Compute::tiled(const Linear &linear, int rows) const {
  const Matrix &w = *linear.weight;
  return kernels_.panels_tiles && rows >= kTiledRows && !exact_ && !linear.mixed() &&
         (w.packed() || w.floats().type != FloatType::f32);
}

Roundings Compute::roundings(const std::vector<const Linear *> &linears, int rows) const {
  Roundings found;
  found.rest = fine_ && rows > kFineRows;
  for (const Linear *linear : linears) {
    if (linear->mixed()) {
      found.threshold = linear->threshold;
      found.values |= exact_ || !linear->weight->packed();
      continue;
    }
    const bool tiles = tiled(*linear, rows);
    found.tiles |= tiles;
    found.blocks |= linear->weight->packed() && !exact_ && !tiles;
    found.bfloats |= rows >= kFewRows && halves(*linear->weight) && !tiles;
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
int Compute::panels_of_a_piece(const Linear &linear, int rows, int left) const {
  const int threads = pool_->threads();
  if (rows == 1) return next_piece(left, threads);
  if (!tiled(linear, rows)) return 2;
  return std::clamp(left / (3 * threads) / 2 * 2, 2, kTiledPanels);
}

// Ask memory for the first bytes of groups of rows of w that a single row will be multiplied with.
void Compute::fetch_start(const Matrix &w, int rows, int first) const {
  if (rows != 1 || !w.packed()) return;
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
      const int wanted = panels_of_a_piece(*products[i].linear, products[i].x.floats.count, left);
      const int n = std::min(wanted, panels - first);
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
  const int rows = product.x.floats.count;
  const size_t rank = padded(down.rows()), width = padded(up.rows());
  float *narrow = scratch(Scratch::narrow, rows * rank), *added = scratch(Scratch::adapted, rows * width);
  pool_->run(down.row_panels(),
             [&](int panel) { multiply_exactly(product.x.floats, down, panel, 1, narrow + panel * kPanelRows, rank); });
  const Rows inner{narrow, rank, rows};
  const int step = 2, panels = up.row_panels();  // as many as `floats_rows` takes
  pool_->run((panels + step - 1) / step, [&](int piece) {
    const int first = piece * step, n = std::min(step, panels - first), column = first * kPanelRows;
    multiply_exactly(inner, up, first, n, added + column, width);
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
  if (tiled(linear, x.floats.count)) {
    const TiledRows tiles = rounded_.tiles(x.group);
    if (w.packed()) return kernels_.panels_tiles(w.panels(), first, count, tiles, y, stride);
    const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
    return kernels_.floats_tiles(w.floats(), row, rows, tiles, y, stride);
  }
  if (w.packed() && !exact_) {
    if (x.floats.count > kFineRows) return multiply_rows(x, w, first, count, y, stride);
    for (int i = 0; i < x.floats.count; ++i)  // from the second on, the panels lie in the cache
      kernels_.panels_row(w.panels(), first, count, rounded_.fine(x.group, i), packed_reading_, y + i * stride);
  } else if (halves(w) && x.floats.count >= kFewRows) {
    const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
    kernels_.floats_rows_rounded(w.floats(), row, rows, rounded_.bfloats(x.group), x.floats.count, y, stride);
  } else {
    multiply_exactly(x.floats, w, first, count, y, stride);
  }
}

// The same of rows that are not rounded.
void Compute::multiply_exactly(const Rows &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
  if (w.packed() && x.count == 1) {
    kernels_.panels_row_exact(w.panels(), first, count, x.data, packed_reading_, y);
  } else if (w.packed()) {
    kernels_.panels_exact(w.panels(), first, count, x, y, stride);
  } else if (x.count < kFewRows) {
    for (int i = 0; i < x.count; ++i)
      kernels_.floats_row(w.floats(), row, rows, x.data + i * x.stride, float_reading_, y + i * stride);
  } else {
    kernels_.floats_rows(w.floats(), row, rows, x, y, stride);
  }
}

// The same of rows that LLM.int8() rounds: int8 with the codes of packed matrices, and columns with large inputs in
// float32.
void Compute::multiply_mixed(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  const MixedRows &in = rounded_.mixed(x.group);
  if (exact_ || !w.packed()) return multiply_exactly(in.values(), w, first, count, y, stride);
  const int rows = x.floats.count, large = static_cast<int>(in.columns().size());
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

// Several rows of a rounded input times a packed matrix. What was rounded twice is multiplied twice and added; the
// matrix is unpacked once.
void Compute::multiply_rows(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  const int rows = x.floats.count;
  if (!fine_) return kernels_.panels_rows(w.panels(), first, count, rounded_.rows(x.group), rows, y, stride);
  static thread_local std::vector<float> products;
  const size_t width = padded(count * kPanelRows);
  if (products.size() < 2 * rows * width) products.resize(2 * rows * width);
  float *both = products.data();
  kernels_.panels_rows(w.panels(), first, count, rounded_.rows(x.group), 2 * rows, both, width);
  for (int i = 0; i < rows; ++i) {
    const float *coarse = both + i * width, *rest = both + (rows + i) * width;
    for (int k = 0; k < count * kPanelRows; ++k) y[i * stride + k] = coarse[k] + rest[k];
  }
}

}  // namespace bitsmith

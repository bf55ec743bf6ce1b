#include "stored.h"

#include <algorithm>

namespace bitsmith {

namespace {

constexpr int kBackColumns = 128;  // of a piece: whole blocks of every grid
constexpr size_t kWorthWaking =
    1 << 20;  // bytes of panels, for each row: with fewer, one thread is done before others wake

}  // namespace

StoredProducts::StoredProducts(Isa isa, int threads) : pool_(std::make_shared<Pool>(threads)) {
  const auto alone = std::make_shared<Pool>(1);
  for (int i = 0; i < 3; ++i) {
    const auto precision = static_cast<Precision>(i);
    const bool exact = precision == Precision::exact, fine = precision == Precision::fine;
    computes_[i] = {std::make_unique<Compute>(isa, alone, exact, fine),
                    std::make_unique<Compute>(isa, pool_, exact, fine)};
  }
}

void StoredProducts::forward(std::shared_ptr<Matrix> w, const Rows &x, Precision precision, float threshold, float *y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Compute &on = compute(precision, w->bytes() * x.count >= kWorthWaking);
  const int rows = w->rows(), cols = w->cols(), n = x.count;
  const Linear linear{std::move(w), {}, threshold};
  on.begin(n <= kFewRows ? n : 0, false);
  on.round(x.data, x.stride, n, cols, {&linear});
  const Input input{x};
  const size_t stride = padded(rows);
  if (stride == static_cast<size_t>(rows)) return on.multiply(linear, input, y, stride);
  float *wide = on.scratch(Scratch::added, n * stride);
  on.multiply(linear, input, wide, stride);
  on.each_row(n, [&](int row) {
    std::copy(wide + row * stride, wide + row * stride + rows, y + static_cast<size_t>(row) * rows);
  });
}

void StoredProducts::back(const Matrix &w, const float *x, int n, float *y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Compute &on = compute(Precision::exact, true);
  const int rows = w.rows(), cols = w.cols();
  on.run((cols + kBackColumns - 1) / kBackColumns, [&](int piece) {
    const int col = piece * kBackColumns, width = std::min(kBackColumns, cols - col);
    on.kernels().panels_back(w.panels(), rows, col, width, {x, static_cast<size_t>(rows), n}, y + col, cols);
  });
}

}  // namespace bitsmith

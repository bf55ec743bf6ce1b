#include "stored.h"

#include <algorithm>
#include <cstring>

namespace bitsmith {

namespace {

constexpr int kBackColumns = 128;  // of a piece: whole blocks of every grid
constexpr size_t kWorthWaking =
    1 << 20;  // bytes of panels, for each row: with fewer, one thread is done before others wake

constexpr int kRun = 32;  // columns whose codes share 16 bytes: the first half of them in the lower four bits

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// One block of a row, from its first word on; words of a row lie 64 bytes apart.
void decode_block(const Nibbles &w, const uint8_t *words, uint16_t *y) {
  constexpr size_t kNext = 4 * kPanelRows;
  float scale, offset = 0;
  std::memcpy(&scale, words, 4);
  if (w.has_offset) std::memcpy(&offset, words + kNext, 4);
  uint16_t values[16];
  for (int code = 0; code < 16; ++code) {
    const float scaled = scale * w.levels[code];
    values[code] = to_bfloat16(w.has_offset ? scaled + offset : scaled);
  }
  const uint8_t *codes = words + (1 + w.has_offset) * kNext;
  for (int run = 0; run < w.width; run += kRun, y += kRun)
    for (int word = 0; word < 4; ++word, codes += kNext)
      for (int byte = 0; byte < 4; ++byte) {
        y[4 * word + byte] = values[codes[byte] & 15];
        y[4 * word + byte + kRun / 2] = values[codes[byte] >> 4];
      }
}

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

void StoredProducts::decode(const Nibbles &w, uint16_t *y) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Compute &on = compute(Precision::exact, true);
  on.run((w.rows + kPanelRows - 1) / kPanelRows, [&](int panel) {
    const uint8_t *from = w.panels + panel * w.panel_bytes();
    const int count = std::min(kPanelRows, w.rows - panel * kPanelRows);
    for (int row = 0; row < count; ++row) {
      uint16_t *to = y + static_cast<size_t>(panel * kPanelRows + row) * w.cols;
      for (int block = 0; block < w.blocks(); ++block)
        decode_block(w, from + static_cast<size_t>(block) * w.words() * 4 * kPanelRows + 4 * row, to + block * w.width);
    }
  });
}

}  // namespace bitsmith

// Gradients: rows times panels of grids the other way round, as the backward pass of a linear layer needs it.
#include "strips.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kBackRows = 256;  // rows of the matrix decoded at a time: 128 KB for 128 columns
constexpr int kColumns = 16;    // of a strip

// One row of an unpacked panel: columns col .. col + 15, to `to`.
template <class T>
BITSMITH_INLINE void decode_columns(const Strip &strip, int col, int row, float *to) {
  const float scale = strip.scales[col / KindOf<T>::kSub * 16 + row];
  const float low = T::kAffine ? strip.lows[col / T::kSub * 16 + row] : 0.0f;
  uint8_t codes[kColumns];
  for (int j = 0; j < 4; ++j) std::memcpy(codes + 4 * j, strip.codes + (col / 4 + j) * 64 + 4 * row, 4);
  for (int k = 0; k < kColumns; ++k) {
    const float scaled = scale * level<T>(codes[k]);
    to[k] = T::kAffine ? scaled - low : scaled;
  }
}

// `cols` columns of a panel from `col` on, as strips of 16 columns: to[(strip * kBackRows + row) * 16 + column].
template <class T>
void decode_panel(const PanelRows &w, int panel, int col, int cols, const Strip &strip, float *to) {
  unpack<T>(w, panel, col, cols, strip);
  for (int at = 0; at < cols; at += kColumns)
    for (int row = 0; row < kPanelRows; ++row)
      decode_columns<T>(strip, at, row, to + (static_cast<size_t>(at / kColumns) * kBackRows + row) * kColumns);
}

}  // namespace

void panels_back(const PanelRows &w, int rows, int col, int cols, const Rows &x, float *y, size_t stride) {
  float *values = scratch<float, 3>(static_cast<size_t>(cols) * kBackRows);
  const Strip strip = strip_buffers();
  for (int i = 0; i < x.count; ++i) std::fill(y + i * stride, y + i * stride + cols, 0.0f);
  for (int first = 0; first < rows; first += kBackRows) {
    const int depth = std::min(kBackRows, rows - first);
    with_grid(w.type, [&](auto type) {
      for (int row = 0; row < depth; row += kPanelRows)
        decode_panel<decltype(type)>(w, (first + row) / kPanelRows, col, cols, strip, values + row * kColumns);
    });
    for (int at = 0; at < cols; at += 2 * kColumns) {
      const float *from = values + static_cast<size_t>(at / kColumns) * kBackRows * kColumns;
      strip_product({x.data + first, x.stride, x.count}, depth, from, from + kBackRows * kColumns, y + at, stride);
    }
  }
}

}  // namespace bitsmith::BITSMITH_ISA

#include "matrix.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

namespace bitsmith {
namespace {

// Words of the blocks of 16 rows side by side; rows beyond `rows` are zero.
void interleave(const BlockLayout &layout, const uint8_t *bytes, size_t row_bytes, int rows, int blocks,
                uint8_t *panel) {
  const int block_bytes = layout.bytes(), lead = layout.half == Half::front ? 2 : 0;
  const int half_at = layout.half == Half::front ? 0 : 4 * layout.words;
  uint8_t *halves = panel + static_cast<size_t>(blocks) * layout.words * 64;
  if (rows < kPanelRows) std::memset(panel, 0, static_cast<size_t>(blocks) * block_bytes * kPanelRows);
  const uint8_t *row[kPanelRows];
  for (int r = 0; r < rows; ++r) row[r] = bytes + r * row_bytes;
  for (int block = 0; block < blocks; ++block) {
    const size_t at = static_cast<size_t>(block) * block_bytes;
    uint8_t *words = panel + static_cast<size_t>(block) * layout.words * 64;
    if (rows == kPanelRows) {
      for (int w = 0; w < layout.words; ++w)
        for (int r = 0; r < kPanelRows; ++r) std::memcpy(words + 64 * w + 4 * r, row[r] + at + lead + 4 * w, 4);
    } else {
      for (int w = 0; w < layout.words; ++w)
        for (int r = 0; r < rows; ++r) std::memcpy(words + 64 * w + 4 * r, row[r] + at + lead + 4 * w, 4);
    }
    if (layout.half == Half::none) continue;
    for (int r = 0; r < rows; ++r)
      std::memcpy(halves + (static_cast<size_t>(block) * kPanelRows + r) * 2, row[r] + at + half_at, 2);
  }
}

bool read_all(int descriptor, uint8_t *out, size_t size, int64_t offset) {
  while (size > 0) {
    const ssize_t got = pread(descriptor, out, std::min<size_t>(size, size_t{1} << 30), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    out += got;
    offset += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace

Matrix::Matrix(Unfilled, const std::string &layout, int rows, int cols) : rows_(rows), cols_(cols) {
  if (rows < 0 || cols < 1) throw std::invalid_argument("a matrix needs rows and columns.");
  if (layout == "f32" || layout == "f16" || layout == "bf16") {
    float_type_ = layout == "f32" ? FloatType::f32 : layout == "f16" ? FloatType::f16 : FloatType::bf16;
    row_bytes_ = static_cast<size_t>(cols) * (layout == "f32" ? 4 : 2);
    return;
  }
  for (int i = 0; i < kPanelTypes; ++i) {
    if (layout != kBlocks[i].name) continue;
    packed_ = true;
    type_ = static_cast<PanelType>(i);
    if (cols % kBlocks[i].weights)
      throw std::invalid_argument("a row of " + std::to_string(cols) + " weights is no whole number of " + layout +
                                  " blocks of " + std::to_string(kBlocks[i].weights) + ".");
    row_bytes_ = static_cast<size_t>(cols / kBlocks[i].weights) * kBlocks[i].bytes();
    return;
  }
  throw std::invalid_argument("the C++ core has no products with " + layout + ".");
}

File::File(int descriptor) : descriptor_(dup(descriptor)) {
  if (descriptor_ < 0) throw std::runtime_error("a file cannot be kept open.");
}

File::~File() { close(descriptor_); }

Matrix::Matrix(const std::string &layout, int rows, int cols, Arena *arena) : Matrix(Unfilled{}, layout, rows, cols) {
  allocate(arena);
}

void Matrix::allocate(Arena *arena) {
  const size_t size = packed_ ? static_cast<size_t>(row_panels()) * kPanelRows * row_bytes_ : bytes();
  own_ = arena ? arena->take(size) : Arena::whole(size);
  data_ = own_.data;
}

std::shared_ptr<Matrix> Matrix::later(const std::string &layout, int rows, int cols, std::shared_ptr<File> file,
                                      int64_t offset) {
  std::shared_ptr<Matrix> matrix(new Matrix(Unfilled{}, layout, rows, cols));
  matrix->file_ = std::move(file);
  matrix->offset_ = offset;
  return matrix;
}

void Matrix::fetch(Pool &pool) {
  if (data_) return;
  allocate(nullptr);
  try {
    read(file_->descriptor(), offset_, pool);
  } catch (const std::exception &) {
    forget();
    throw;
  }
}

void Matrix::forget() {
  if (!file_) return;
  own_ = {};
  data_ = nullptr;
}

std::shared_ptr<Matrix> Matrix::view(const std::string &layout, int rows, int cols, const uint8_t *data) {
  std::shared_ptr<Matrix> matrix(new Matrix(Unfilled{}, layout, rows, cols));
  if (matrix->packed_) throw std::invalid_argument("only floats can be used where they lie; " + layout + " is packed.");
  matrix->data_ = data;
  return matrix;
}

std::shared_ptr<Matrix> Matrix::view_panels(const std::string &layout, int rows, int cols, const uint8_t *data) {
  std::shared_ptr<Matrix> matrix(new Matrix(Unfilled{}, layout, rows, cols));
  if (!matrix->packed_) throw std::invalid_argument("only packed matrices have panels; " + layout + " is not packed.");
  matrix->data_ = data;
  return matrix;
}

void Matrix::place(int panel, const uint8_t *bytes) {
  const int first = panel * kPanelRows, rows = std::min(kPanelRows, rows_ - first);
  uint8_t *to = own_.data + static_cast<size_t>(first) * row_bytes_;
  if (packed_) {
    interleave(layout_of(type_), bytes, row_bytes_, rows, panels().blocks(), to);
    kernels(chosen_isa()).repack(type_, panels().blocks(), to);
  } else {
    std::memcpy(to, bytes, rows * row_bytes_);
  }
}

void Matrix::fill(int first, int count, const uint8_t *bytes, size_t size, Pool &pool) {
  if (first < 0 || count < 0 || first % kPanelRows || first + count > rows_ ||
      (count % kPanelRows && first + count != rows_) || size != count * row_bytes_ || !own_.data)
    throw std::invalid_argument("rows " + std::to_string(first) + ".." + std::to_string(first + count) + " in " +
                                std::to_string(size) + " bytes do not fit a matrix of " + std::to_string(rows_) +
                                " rows of " + std::to_string(row_bytes_) + " bytes.");
  pool.run((count + kPanelRows - 1) / kPanelRows, [&](int panel) {
    place(first / kPanelRows + panel, bytes + static_cast<size_t>(panel) * kPanelRows * row_bytes_);
  });
}

void Matrix::read(int descriptor, int64_t offset, Pool &pool) {
  const size_t panel_bytes = kPanelRows * row_bytes_;
  const int step = static_cast<int>(std::max<size_t>(1, (size_t{256} << 10) / std::max<size_t>(panel_bytes, 1)));
  const int panels = row_panels();
  std::atomic<bool> failed{false};
  pool.run((panels + step - 1) / step, [&](int piece) {
    static thread_local std::vector<uint8_t> buffer;
    const int first = piece * step, count = std::min(step, panels - first);
    const size_t at = static_cast<size_t>(first) * panel_bytes, size = std::min(count * panel_bytes, bytes() - at);
    if (buffer.size() < size) buffer.resize(size);
    if (!read_all(descriptor, buffer.data(), size, offset + static_cast<int64_t>(at))) {
      failed = true;
      return;
    }
    for (int p = 0; p < count; ++p) place(first + p, buffer.data() + p * panel_bytes);
  });
  if (failed) throw std::runtime_error("the file ended, or could not be read.");
}

void Matrix::decode(const Kernels &kernels, int row, float *y) const {
  if (packed_)
    kernels.panels_decode(panels(), row, y);
  else
    kernels.floats_decode(floats(), row, y);
}

}  // namespace bitsmith

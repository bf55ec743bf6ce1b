// A matrix [rows, cols] ready for products: panels of a ggml type, or floats row by row.
#pragma once

#include <memory>
#include <string>

#include "buffer.h"
#include "kernels.h"
#include "pool.h"

namespace bitsmith {

// An open file, closed at the end.
class File {
 public:
  // A descriptor of its own for what `descriptor` has open. Throws std::runtime_error if there is none.
  explicit File(int descriptor);
  ~File();
  File(const File &) = delete;
  File &operator=(const File &) = delete;
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
};

class Matrix {
 public:
  // Layouts: ggml's names, "q4_k", or "f32", "f16", "bf16". Throws std::invalid_argument for others, and for rows that
  // are no whole number of blocks.
  // arena: where its memory is taken from; null for memory of its own
  Matrix(const std::string &layout, int rows, int cols, Arena *arena = nullptr);

  // Floats that lie elsewhere, [rows, cols] as the file has them; `data` must outlive the matrix.
  static std::shared_ptr<Matrix> view(const std::string &layout, int rows, int cols, const uint8_t *data);

  // Panels as `fill` makes them, that lie elsewhere; `data` must outlive the matrix.
  static std::shared_ptr<Matrix> view_panels(const std::string &layout, int rows, int cols, const uint8_t *data);
  size_t panel_bytes() const { return static_cast<size_t>(row_panels()) * kPanelRows * row_bytes_; }

  // One that `fetch` reads from a file when it is needed, and `forget` frees again.
  static std::shared_ptr<Matrix> later(const std::string &layout, int rows, int cols, std::shared_ptr<File> file,
                                       int64_t offset);
  bool on_demand() const { return file_ != nullptr; }
  void fetch(Pool &pool);  // throws std::runtime_error as `read` does
  void forget();

  // Rows first.. from bytes as the file has them; `first` a multiple of 16. Throws std::invalid_argument for rows or
  // sizes that do not fit.
  void fill(int first, int count, const uint8_t *bytes, size_t size, Pool &pool);

  // All rows from a file. Throws std::runtime_error where it ends too early or cannot be read.
  void read(int descriptor, int64_t offset, Pool &pool);

  int rows() const { return rows_; }
  int cols() const { return cols_; }
  bool packed() const { return packed_; }
  size_t row_bytes() const { return row_bytes_; }
  size_t bytes() const { return static_cast<size_t>(rows_) * row_bytes_; }
  PanelRows panels() const { return {type_, data_, cols_}; }
  FloatRows floats() const { return {float_type_, data_, cols_}; }
  int row_panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }

  // One row, decoded: y[cols].
  void decode(const Kernels &kernels, int row, float *y) const;

 private:
  struct Unfilled {};
  Matrix(Unfilled, const std::string &layout, int rows, int cols);
  void place(int panel, const uint8_t *bytes);
  void allocate(Arena *arena);

  int rows_, cols_;
  bool packed_ = false;
  PanelType type_ = PanelType::q8_0;
  FloatType float_type_ = FloatType::f32;
  size_t row_bytes_ = 0;
  Arena::Room own_;
  const uint8_t *data_ = nullptr;
  std::shared_ptr<File> file_;  // of one that is fetched
  int64_t offset_ = 0;
};

}  // namespace bitsmith

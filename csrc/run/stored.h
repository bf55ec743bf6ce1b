// Products with matrices that others own, as torch's layers do: forward, and the other way round for gradients.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "compute.h"

namespace bitsmith {

// How inputs are rounded: not at all, to 15 bits, or to int8 (a single row to 15 bits).
enum class Precision { exact, fine, coarse };

// A matrix of 4-bit codes in panels: blocks of `width` columns, a float32 scale, an offset where there is one, codes.
struct Nibbles {
  const uint8_t *panels;
  int rows, cols, width;
  bool has_offset;
  const float *levels;  // [16], by code

  int blocks() const { return cols / width; }
  int words() const { return 1 + has_offset + width / 8; }  // of a block, four bytes each
  size_t panel_bytes() const { return static_cast<size_t>(blocks()) * words() * 4 * kPanelRows; }
};

class StoredProducts {
 public:
  StoredProducts(Isa isa, int threads);

  // y[n, w.rows] = x[n, w.cols] times w, transposed. threshold: of LLM.int8(), which then rounds x; or kNotMixed
  void forward(std::shared_ptr<Matrix> w, const Rows &x, Precision precision, float threshold, float *y);
  // y[n, w.cols] = x[n, w.rows] times w. Nothing is rounded.
  void back(const Matrix &w, const float *x, int n, float *y);
  // y[rows, cols] = the values of a matrix of 4-bit codes, rounded to bfloat16
  void decode(const Nibbles &w, uint16_t *y);

 private:
  // shared: on all threads
  Compute &compute(Precision precision, bool shared) { return *computes_[static_cast<int>(precision)][shared]; }

  std::shared_ptr<Pool> pool_;
  std::array<std::unique_ptr<Compute>, 2> computes_[3];
  std::mutex mutex_;  // one product at a time
};

}  // namespace bitsmith

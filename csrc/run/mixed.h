// Inputs as LLM.int8() takes them (Dettmers et al. 2022, section 3.2; quant/input_rounding.py is the definition).
//
// Columns in which any row of a product's input reaches the threshold stay as they are; all other inputs become int8,
// with one scale a row, after they were rounded to float16. Which columns stay is known only once all rows are: so rows
// are rounded first, and settled when the product is taken.
#pragma once

#include <vector>

#include "kernels.h"

namespace bitsmith {

constexpr float kNotMixed = -1.0f;  // in place of a threshold

class MixedRows {
 public:
  // Forget everything; `rows` rows of `cols` columns follow. threshold: 0 for none; values: whether `values` is wanted
  void start(int cols, int rows, float threshold, bool values);
  // Row i, on any thread.
  void round(const Kernels &kernels, int i, const float *x);
  // Find the columns that stay, once all rows are rounded. False: that was done already.
  bool gather();
  // Take those columns out of row i, on any thread. x: the row as it was
  void settle(const Kernels &kernels, int i, const float *x);

  const std::vector<int> &columns() const { return columns_; }   // that stay, ascending
  RoundedRows codes() const { return {blocks_.data(), cols_}; }  // zero in those columns
  FineRow fine() const { return {fine_.data(), sums_.data()}; }  // the same, of a single row
  Rows kept() const { return {kept_.data(), columns_.size(), rows_}; }
  // Rounded rows as floats, with the columns that stay.
  Rows values() const { return {values_.data(), static_cast<size_t>(cols_), rows_}; }

 private:
  size_t length() const { return (static_cast<size_t>(cols_) + 31) / 32; }  // blocks of a row

  int cols_ = 0, rows_ = 0;
  float threshold_ = 0;
  bool wants_values_ = false, gathered_ = false;
  std::vector<std::vector<int>> large_;  // of each row
  std::vector<int> columns_;
  std::vector<RoundedBlock> blocks_;
  std::vector<FineBlock> fine_;
  std::vector<FineSums> sums_;
  std::vector<float> kept_, values_;
};

}  // namespace bitsmith

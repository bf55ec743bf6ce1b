#include "mixed.h"

#include <algorithm>
#include <limits>

namespace bitsmith {
namespace {

// A code becomes zero, and its block's sums know of it.
void take_out(RoundedBlock &block, int place) {
  const int code = block.codes[place];
  if (code == 0) return;
  block.codes[place] = 0;
  block.negated += code;
  block.negated_16[place / 16] += code;
  for (int i = 0; i < 2; ++i) block.halves[i] = -block.scale * static_cast<float>(block.negated_16[i]);
  block.sum = block.halves[0] + block.halves[1];
}

}  // namespace

void MixedRows::start(int cols, int rows, float threshold, bool values) {
  cols_ = cols, rows_ = rows, wants_values_ = values, gathered_ = false;
  threshold_ = threshold > 0 ? threshold : std::numeric_limits<float>::infinity();
  if (large_.size() < static_cast<size_t>(rows)) large_.resize(rows);
  const auto grow = [](auto &buffer, size_t size) {
    if (buffer.size() < size) buffer.resize(size);
  };
  grow(blocks_, rows * length());
  if (rows == 1) grow(fine_, length()), grow(sums_, length() / 8 + 1);
  if (values) grow(values_, static_cast<size_t>(rows) * cols);
}

void MixedRows::round(const Kernels &kernels, int i, const float *x) {
  static thread_local std::vector<int> large;
  if (large.size() < static_cast<size_t>(cols_)) large.resize(cols_);
  const int count = kernels.round_mixed(x, cols_, threshold_, blocks_.data() + i * length(), large.data());
  large_[i].assign(large.begin(), large.begin() + count);
}

bool MixedRows::gather() {
  if (gathered_) return false;
  gathered_ = true;
  std::vector<bool> stays(cols_);
  for (int i = 0; i < rows_; ++i)
    for (const int column : large_[i]) stays[column] = true;
  columns_.clear();
  for (int column = 0; column < cols_; ++column)
    if (stays[column]) columns_.push_back(column);
  kept_.resize(rows_ * columns_.size());
  return true;
}

void MixedRows::settle(const Kernels &kernels, int i, const float *x) {
  RoundedBlock *blocks = blocks_.data() + i * length();
  float *kept = kept_.data() + i * columns_.size();
  for (const int column : columns_) {
    take_out(blocks[column / 32], column % 32);
    *kept++ = x[column];
  }
  if (rows_ == 1) kernels.to_fine(blocks, cols_, fine_.data(), sums_.data());
  if (!wants_values_) return;
  float *values = values_.data() + static_cast<size_t>(i) * cols_;
  for (int k = 0; k < cols_; ++k) values[k] = static_cast<float>(blocks[k / 32].codes[k % 32]) * blocks[k / 32].scale;
  for (const int column : columns_) values[column] = x[column];
}

}  // namespace bitsmith

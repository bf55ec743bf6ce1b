// What operations compute with: products with matrices, loops over rows, and memory that they share.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "pool.h"
#include "reading.h"
#include "rounded.h"

namespace bitsmith {

constexpr int kFewRows = 16;  // so many rows that come together are computed as if each came alone

// An adapter of low rank: the product is x W^T + (x down^T) up^T.
struct LowRank {
  std::shared_ptr<Matrix> down, up;  // float32 [rank, cols] and [rows, rank]
};

struct Linear {
  std::shared_ptr<Matrix> weight;
  std::vector<float> bias = {};  // [rows], or empty
  float threshold = kNotMixed;   // of LLM.int8(), if its inputs are rounded in that way
  LowRank adapter = {};          // null without one
  bool mixed() const { return threshold != kNotMixed; }
};

// Rows of floats, and the group of a RoundedBuffer that holds them rounded.
struct Input {
  Rows floats;
  int group = 0;
};

struct Product {
  const Linear *linear;
  Input x;
  float *out;  // rows are `stride` apart
  size_t stride;
};

// Seconds spent in forward passes.
struct Times {
  double total = 0, products = 0, attention = 0;
};

// Adds the time it lives to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double &seconds) : seconds_(seconds), start_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  double &seconds_;
  Clock::time_point start_;
};

// Rows of a buffer that products write: they may write a few columns too many.
constexpr size_t padded(int cols) { return (static_cast<size_t>(cols) + 31) / 32 * 32; }

inline void add(float *x, const float *y, size_t n) {
  for (size_t i = 0; i < n; ++i) x[i] += y[i];
}

inline void scale(float *x, float factor, size_t n) {
  if (factor == 1.0f) return;
  for (size_t i = 0; i < n; ++i) x[i] *= factor;
}

// Memory that all operations of a model use one after the other, by what lies in it.
enum class Scratch {
  hidden,
  normed,
  added,
  q,
  k,
  v,
  turned,
  mix,
  gate,
  up,
  scores,
  gathered,
  layers,
  inner,
  beside,
  narrow,
  adapted
};

class Compute {
 public:
  // exact: inputs of products are not rounded
  // fine: inputs of all rows are rounded to 15 bits, not only those that are computed as if each came alone
  Compute(Isa isa, std::shared_ptr<Pool> pool, bool exact, bool fine)
      : kernels_(bitsmith::kernels(isa)), pool_(std::move(pool)), exact_(exact), fine_(fine) {}

  const Kernels &kernels() const { return kernels_; }
  Pool &pool() { return *pool_; }
  RoundedBuffer &rounded() { return rounded_; }
  Times &times() { return times_; }
  // How packed matrices, and float matrices, are read for a single row.
  void set_reading(const Reading &packed, const Reading &floats) { packed_reading_ = packed, float_reading_ = floats; }

  // At least `size` floats, undefined.
  float *scratch(Scratch which, size_t size) {
    std::vector<float> &buffer = scratch_[static_cast<int>(which)];
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  // Call body(piece) for all pieces, on all threads.
  template <class Body>
  void run(int pieces, const Body &body) {
    pool_->run(pieces, body);
  }
  // Call body(row) for all rows, several of them a piece.
  template <class Body>
  void each_row(int rows, const Body &body) {
    const int step = std::max(1, rows / (8 * pool_->threads()));
    pool_->run((rows + step - 1) / step, [&](int piece) {
      for (int row = piece * step; row < std::min(rows, (piece + 1) * step); ++row) body(row);
    });
  }

  // Products of the first `single` of all rows to come give, bit for bit, what each row gives alone; but with `exact`
  // or LLM.int8(). strict: the others never do; else they may where they are few.
  void begin(int single, bool strict) { single_ = single, strict_ = strict; }
  int single() const { return single_; }

  // How inputs of so many rows are rounded for these linears. single: how many of them; the others are those that are
  // left of all rows.
  Roundings roundings(const std::vector<const Linear *> &linears, int rows, int single) const;
  Roundings roundings(const std::vector<const Linear *> &linears, int rows) const {
    return roundings(linears, rows, std::min(single_, rows));
  }
  // Round `rows` rows, `stride` apart, as the only group.
  void round(const float *x, size_t stride, int rows, int cols, const std::vector<const Linear *> &linears);
  // Products without biases, as one loop over groups of rows of their matrices. Their inputs lie in `rounded()`.
  void multiply(const Product *products, int count);
  // One product, and its bias.
  void multiply(const Linear &linear, const Input &x, float *out, size_t stride);

 private:
  struct Piece {
    int product, first, count;  // groups of 16 rows
  };

  bool halves(const Matrix &w) const;
  bool tiled(const Linear &linear, int others) const;
  int panels_of_a_piece(const Product &product, int left) const;
  void fetch_start(const Matrix &w, int rows, int first) const;
  void settle(const Product &product);
  void multiply_part(const Input &x, const Linear &linear, int first, int count, float *y, size_t stride) const;
  void multiply_mixed(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const;
  void multiply_exactly(const Rows &x, int single, const Matrix &w, int first, int count, float *y,
                        size_t stride) const;
  void multiply_fine(const FineRows &x, int rows, const Matrix &w, int first, int count, float *y, size_t stride) const;
  void multiply_floats(const Rows &x, const Matrix &w, int first, int count, float *y, size_t stride) const;
  void add_adapter(const Product &product);

  const Kernels &kernels_;
  std::shared_ptr<Pool> pool_;
  bool exact_, fine_;
  int single_ = 0;
  bool strict_ = false;
  Reading packed_reading_ = kReadings[0], float_reading_ = kReadings[0];
  Times times_;
  RoundedBuffer rounded_;
  std::vector<Piece> pieces_;
  std::array<std::vector<float>, static_cast<int>(Scratch::adapted) + 1> scratch_;
};

}  // namespace bitsmith

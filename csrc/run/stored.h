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

class StoredProducts {
 public:
  StoredProducts(Isa isa, int threads);

  // y[n, w.rows] = x[n, w.cols] times w, transposed. threshold: of LLM.int8(), which then rounds x; or kNotMixed
  void forward(std::shared_ptr<Matrix> w, const Rows &x, Precision precision, float threshold, float *y);
  // y[n, w.cols] = x[n, w.rows] times w. Nothing is rounded.
  void back(const Matrix &w, const float *x, int n, float *y);

 private:
  // shared: on all threads
  Compute &compute(Precision precision, bool shared) { return *computes_[static_cast<int>(precision)][shared]; }

  std::shared_ptr<Pool> pool_;
  std::array<std::unique_ptr<Compute>, 2> computes_[3];
  std::mutex mutex_;  // one product at a time
};

}  // namespace bitsmith

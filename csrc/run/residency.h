// Which of the matrices that are fetched on demand lie in memory: the ones used last, up to a limit.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>
#include <vector>

#include "matrix.h"

namespace bitsmith {

class Residency {
 public:
  // limit: bytes of such matrices in memory, unless those needed at once are more
  explicit Residency(size_t limit) : limit_(limit) {}

  size_t limit() const { return limit_; }
  size_t fetched() const { return fetched_; }  // bytes read from files so far

  // All of `wanted` lie in memory afterwards, until the next call. Throws std::runtime_error where a file cannot be
  // read.
  void need(const std::vector<Matrix *> &wanted, Pool &pool);

 private:
  size_t limit_, used_ = 0, fetched_ = 0;
  std::list<Matrix *> order_;  // in memory, the one used longest ago first
  std::unordered_map<Matrix *, std::list<Matrix *>::iterator> places_;
};

}  // namespace bitsmith

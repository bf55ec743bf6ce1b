#include "residency.h"

namespace bitsmith {

void Residency::need(const std::vector<Matrix *> &wanted, Pool &pool) {
  size_t missing = 0, present = 0;
  for (Matrix *matrix : wanted) {
    if (!matrix->on_demand()) continue;
    const auto place = places_.find(matrix);
    if (place == places_.end()) {
      missing += matrix->bytes();
    } else {
      order_.splice(order_.end(), order_, place->second);  // behind all that may be forgotten
      ++present;
    }
  }
  while (used_ + missing > limit_ && order_.size() > present) {
    Matrix *oldest = order_.front();
    used_ -= oldest->bytes();
    oldest->forget();
    places_.erase(oldest);
    order_.pop_front();
  }
  for (Matrix *matrix : wanted) {
    if (!matrix->on_demand() || places_.count(matrix)) continue;
    matrix->fetch(pool);
    places_[matrix] = order_.insert(order_.end(), matrix);
    used_ += matrix->bytes();
    fetched_ += matrix->bytes();
  }
}

}  // namespace bitsmith

// Keys and values of all layers, and the rotations of their positions.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace bitsmith {

// A cache has `batch` slots, each with room for one sequence of `capacity` positions. How many of them are filled, its
// owner knows.
struct CacheShape {
  int layers, batch, kv_heads, head_dim, capacity;
  CacheType type;
};

class Cache {
 public:
  // cosines, sines: [capacity, dim / 2], the rotation of each position
  Cache(const CacheShape &shape, std::vector<float> cosines, std::vector<float> sines, int rotated)
      : shape_(shape),
        cosines_(std::move(cosines)),
        sines_(std::move(sines)),
        rotated_(rotated),
        keys_(bytes()),
        values_(bytes()) {}

  const CacheShape &shape() const { return shape_; }
  int width() const { return (shape_.head_dim + 31) / 32 * 32; }
  int rotated() const { return rotated_; }
  // Of the usual rotation, and of a second one that some layers may have.
  const float *cosines(int position, int which) const { return place(which ? more_cosines_ : cosines_, position); }
  const float *sines(int position, int which) const { return place(which ? more_sines_ : sines_, position); }
  bool has_more() const { return !more_cosines_.empty() || !shape_.capacity; }
  void set_more(std::vector<float> cosines, std::vector<float> sines) {
    more_cosines_ = std::move(cosines);
    more_sines_ = std::move(sines);
  }

  size_t row_bytes() const { return cache_row_bytes(shape_.type, width()); }
  size_t head(int layer, int slot, int kv_head) const {  // where a head's rows begin
    return ((static_cast<size_t>(layer) * shape_.batch + slot) * shape_.kv_heads + kv_head) * shape_.capacity *
           row_bytes();
  }
  uint8_t *keys() { return keys_.data(); }
  uint8_t *values() { return values_.data(); }
  size_t bytes() const { return head(shape_.layers, 0, 0); }

  // The first lengths[slot] positions of each slot of another cache of the same shape but for its capacity.
  void copy(Cache &other, const int64_t *lengths);

 private:
  const float *place(const std::vector<float> &rotation, int position) const {
    return rotation.data() + static_cast<size_t>(position) * (rotated_ / 2);
  }

  CacheShape shape_;
  std::vector<float> cosines_, sines_, more_cosines_, more_sines_;
  int rotated_;
  Buffer keys_, values_;
};

}  // namespace bitsmith

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
  const float *cosines(int position) const { return cosines_.data() + static_cast<size_t>(position) * (rotated_ / 2); }
  const float *sines(int position) const { return sines_.data() + static_cast<size_t>(position) * (rotated_ / 2); }

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
  CacheShape shape_;
  std::vector<float> cosines_, sines_;
  int rotated_;
  Buffer keys_, values_;
};

}  // namespace bitsmith

// Keys and values of all layers, and the rotations of their positions.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace bitsmith {

// What a layer keeps of each position.
struct KeptHeads {
  int kv_heads, head_dim;
  int width() const { return (head_dim + 31) / 32 * 32; }
  bool operator==(const KeptHeads &other) const { return kv_heads == other.kv_heads && head_dim == other.head_dim; }
};

// The rotation of each position: cosines and sines [capacity, dim / 2]. The first `dim` of a head are turned.
struct Rotation {
  std::vector<float> cosines, sines;
  int dim;
  const float *cosine(int position) const { return cosines.data() + static_cast<size_t>(position) * (dim / 2); }
  const float *sine(int position) const { return sines.data() + static_cast<size_t>(position) * (dim / 2); }
};

// A cache has `batch` slots, each with room for one sequence of `capacity` positions. How many of them are filled, its
// owner knows.
struct CacheShape {
  std::vector<KeptHeads> layers;
  int batch, capacity;
  CacheType type;
};

class Cache {
 public:
  Cache(CacheShape shape, std::vector<Rotation> rotations);

  const CacheShape &shape() const { return shape_; }
  const Rotation &rotation(int number) const { return rotations_[number]; }
  int rotations() const { return static_cast<int>(rotations_.size()); }
  size_t row_bytes(int layer) const { return cache_row_bytes(shape_.type, shape_.layers[layer].width()); }
  // where a head's rows begin
  size_t head(int layer, int slot, int kv_head) const {
    const size_t number = static_cast<size_t>(slot) * shape_.layers[layer].kv_heads + kv_head;
    return begins_[layer] + number * shape_.capacity * row_bytes(layer);
  }
  uint8_t *keys() { return keys_.data(); }
  uint8_t *values() { return values_.data(); }
  size_t bytes() const { return begins_.back(); }

  // The first lengths[slot] positions of each slot of another cache of the same shape but for its capacity.
  void copy(Cache &other, const int64_t *lengths);

 private:
  CacheShape shape_;
  std::vector<Rotation> rotations_;
  std::vector<size_t> begins_;  // of each layer, and the end
  Buffer keys_, values_;
};

}  // namespace bitsmith

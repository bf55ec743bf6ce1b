// Keys and values of all layers, what recurrent layers keep, and the rotations of positions.
#pragma once

#include <utility>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace bitsmith {

// What a layer keeps of each position; no heads in a recurrent one, or if it uses those of another layer.
struct KeptHeads {
  int kv_heads, head_dim;
  int width() const { return (head_dim + 31) / 32 * 32; }
  bool operator==(const KeptHeads &other) const { return kv_heads == other.kv_heads && head_dim == other.head_dim; }
};

// The rotation of each position. The first `dim` of a head are turned.
struct Rotation {
  struct Tables {
    std::vector<float> cosines, sines;  // [capacity, dim / 2]
  };
  Tables usual;
  int dim;
  int context = 0;  // LongRoPE: passes that end beyond so many positions take `longer`; 0 for never
  Tables longer = {};
  const Tables &tables(int stop) const { return context && stop > context ? longer : usual; }
};

// A cache has `batch` slots, each with room for one sequence of `capacity` positions. How many of them are filled, its
// owner knows.
struct CacheShape {
  std::vector<KeptHeads> layers;
  std::vector<size_t> states;  // numbers that each layer keeps of a sequence, whatever its length
  int batch, capacity;
  CacheType type;
};

class Cache {
 public:
  Cache(CacheShape shape, std::vector<Rotation> rotations);

  const CacheShape &shape() const { return shape_; }
  const Rotation &rotation(int number) const { return rotations_[number]; }
  void set_longer(int number, int context, Rotation::Tables tables) {
    rotations_[number].context = context;
    rotations_[number].longer = std::move(tables);
  }
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
  // What a layer keeps of the sequence in a slot.
  float *state(int layer, int slot) { return states_.data() + state_begins_[layer] + slot * shape_.states[layer]; }
  size_t state_bytes() const { return states_.size() * sizeof(float); }

  // The first lengths[slot] positions of each slot of another cache of the same shape but for its capacity.
  void copy(Cache &other, const int64_t *lengths);
  // The first `length` positions of a slot, and what layers keep of its sequence, into another slot.
  void copy_slot(int from, int to, int64_t length);

 private:
  CacheShape shape_;
  std::vector<Rotation> rotations_;
  std::vector<size_t> begins_;  // of each layer, and the end
  std::vector<size_t> state_begins_;
  std::vector<float> states_;
  Buffer keys_, values_;
};

}  // namespace bitsmith

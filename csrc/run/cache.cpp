#include "cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace bitsmith {

Cache::Cache(CacheShape shape, std::vector<Rotation> rotations)
    : shape_(std::move(shape)), rotations_(std::move(rotations)), begins_{0} {
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    const size_t heads = static_cast<size_t>(shape_.batch) * shape_.layers[layer].kv_heads;
    begins_.push_back(begins_.back() + heads * shape_.capacity * row_bytes(static_cast<int>(layer)));
  }
  size_t numbers = 0;
  for (const size_t each : shape_.states) {
    state_begins_.push_back(numbers);
    numbers += each * shape_.batch;
  }
  states_.resize(numbers);
  keys_ = Buffer(bytes());
  values_ = Buffer(bytes());
}

void Cache::copy(Cache &other, const int64_t *lengths) {
  states_ = other.states_;
  for (int layer = 0; layer < static_cast<int>(shape_.layers.size()); ++layer)
    for (int slot = 0; slot < shape_.batch; ++slot)
      for (int h = 0; h < shape_.layers[layer].kv_heads; ++h) {
        const size_t size = static_cast<size_t>(lengths[slot]) * row_bytes(layer);
        std::memcpy(keys() + head(layer, slot, h), other.keys() + other.head(layer, slot, h), size);
        std::memcpy(values() + head(layer, slot, h), other.values() + other.head(layer, slot, h), size);
      }
}

void Cache::copy_slot(int from, int to, int64_t length) {
  for (int layer = 0; layer < static_cast<int>(shape_.layers.size()); ++layer) {
    for (int h = 0; h < shape_.layers[layer].kv_heads; ++h) {
      const size_t size = static_cast<size_t>(length) * row_bytes(layer);
      std::memcpy(keys() + head(layer, to, h), keys() + head(layer, from, h), size);
      std::memcpy(values() + head(layer, to, h), values() + head(layer, from, h), size);
    }
    if (!shape_.states.empty()) std::copy_n(state(layer, from), shape_.states[layer], state(layer, to));
  }
}

}  // namespace bitsmith

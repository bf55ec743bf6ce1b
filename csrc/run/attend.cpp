// Attention of the heads that share keys and values, block of keys by block of keys (online softmax: Milakov and
// Gimelshein 2018; the order of work is FlashAttention's, Dao et al. 2022). Nothing is repeated or masked in memory.
#include <algorithm>
#include <cmath>

#include "exponential.h"
#include "products.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kKeys = 64;  // keys worked on at a time
constexpr int kRows = 48;  // rows (queries times heads) of a tile

// Some keys or values as float32 [count, width].
void read_rows(const HeadRows &rows, int first, int count, int width, float *out) {
  const size_t bytes = cache_row_bytes(rows.type, width);
  const uint8_t *p = rows.data + first * bytes;
  if (rows.type == CacheType::f32) std::memcpy(out, p, count * bytes);
  if (rows.type == CacheType::f16)
    for (int i = 0; i < count * width; i += L) store(out + i, load_half(p + 2 * i));
  if (rows.type != CacheType::q8_0) return;
  for (int block = 0; block < count * width / 32; ++block, p += 34) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    const F scale = from_half(U{} + bits);
    for (int i = 0; i < 32; i += L)
      store(out + 32 * block + i, to_float(__builtin_convertvector(load<S8>(p + 2 + i), I)) * scale);
  }
}

// The softmax of some rows, as it grows block by block.
struct Running {
  float largest, total;
};

// Scores of one row in a block of keys become weights; what was summed before is worth `returned` times as much now.
float soften(float *scores, int from, int to, float scale, Running &row) {
  float most = row.largest;
  for (int j = from; j < to; ++j) {
    scores[j] *= scale;
    most = scores[j] > most ? scores[j] : most;
  }
  const float kept = row.largest == most ? 1.0f : std::exp(row.largest - most);
  row.largest = most;
  std::fill(scores, scores + from, -INFINITY);
  std::fill(scores + to, scores + kKeys, -INFINITY);
  F total{};
  for (int j = 0; j < kKeys; j += L) {
    const F weight = exponential(load<F>(scores + j) - most);
    store(scores + j, weight);
    total += weight;
  }
  row.total = row.total * kept + sum(total);
  return kept;
}

}  // namespace

void keep(const float *x, int width, CacheType type, uint8_t *row) {
  if (type == CacheType::f32) std::memcpy(row, x, width * sizeof(float));
  if (type == CacheType::f16)
    for (int i = 0; i < width; i += L) store_half(row + 2 * i, load<F>(x + i));
  if (type != CacheType::q8_0) return;
  for (int block = 0; block < width / 32; ++block, row += 34) {
    F most{};
    for (int i = 0; i < 32; i += L) most = max(most, magnitude(load<F>(x + 32 * block + i)));
    const float absmax = largest(most), inverse = absmax > 0 ? 127.0f / absmax : 0.0f;
    uint16_t halves[L];
    store_half(halves, broadcast(absmax / 127.0f));
    std::memcpy(row, halves, 2);
    for (int i = 0; i < 32; i += L)
      store(row + 2 + i, __builtin_convertvector(nearest(load<F>(x + 32 * block + i) * inverse), S8));
  }
}

void attend(const Attention &task) {
  const int width = task.width, rows = task.count * task.group;
  const float scale = 1.0f / std::sqrt(static_cast<float>(task.head_dim));
  const auto position = [&](int row) { return task.start + task.first + row / task.group; };
  const auto lowest = [&](int i) {
    if (i < task.padding) return i;
    return std::max(task.padding, task.window ? std::max(0, i - task.window + 1) : 0);
  };
  const int begin = std::min(lowest(position(0)), lowest(position(rows - 1))), end = position(rows - 1) + 1;

  float *sums = scratch<float, 5>(static_cast<size_t>(rows) * width);
  Running *running = scratch<Running, 6>(rows);
  std::fill(sums, sums + static_cast<size_t>(rows) * width, 0.0f);
  std::fill(running, running + rows, Running{-1e30f, 0.0f});
  float *keys = scratch<float, 7>(static_cast<size_t>(kKeys) * width);
  float *key_strips = scratch<float, 8>(static_cast<size_t>(kKeys) * width);
  float *value_strips = scratch<float, 9>(static_cast<size_t>(kKeys) * width);
  alignas(64) float scores[kRows][kKeys];
  const bool strips = rows >= 12;

  for (int block = begin; block < end; block += kKeys) {
    const int count = std::min(kKeys, end - block);
    read_rows(task.keys, block, count, width, keys);
    if (strips) {
      std::fill(key_strips, key_strips + static_cast<size_t>(kKeys) * width, 0.0f);
      for (int j = 0; j < count; ++j)  // [keys / 16][width][16]
        for (int d = 0; d < width; ++d)
          key_strips[(static_cast<size_t>(j / 16) * width + d) * 16 + j % 16] = keys[j * width + d];
      read_rows(task.values, block, count, width, keys);
      std::fill(keys + count * width, keys + kKeys * width, 0.0f);
      for (int j = 0; j < kKeys; ++j)  // [width / 16][keys][16]
        for (int d = 0; d < width; d += 16)
          std::memcpy(value_strips + (static_cast<size_t>(d / 16) * kKeys + j) * 16, keys + j * width + d, 64);
    } else {
      read_rows(task.values, block, count, width, value_strips);
    }
    for (int tile = 0; tile < rows; tile += kRows) {
      const int n = std::min(kRows, rows - tile);
      if (position(tile + n - 1) < block) continue;
      const float *queries = task.queries + (static_cast<size_t>(task.first) * task.group + tile) * width;
      if (strips) {
        std::fill(scores[0], scores[n], 0.0f);
        for (int j = 0; j < kKeys; j += 32) {
          const float *strip = key_strips + static_cast<size_t>(j / 16) * width * 16;
          strip_product({queries, static_cast<size_t>(width), n}, width, strip, strip + static_cast<size_t>(width) * 16,
                        scores[0] + j, kKeys);
        }
      } else {
        const FloatRows all{FloatType::f32, reinterpret_cast<const uint8_t *>(keys), width};
        for (int i = 0; i < n; ++i) floats_row(all, 0, count, queries + static_cast<size_t>(i) * width, scores[i]);
      }
      for (int i = 0; i < n; ++i) {
        const int row = tile + i, at = position(row);
        const int from = std::clamp(lowest(at) - block, 0, count), to = std::clamp(at + 1 - block, from, count);
        float *out = sums + static_cast<size_t>(row) * width;
        if (from == to) {
          std::fill(scores[i], scores[i] + kKeys, 0.0f);
          continue;
        }
        const float kept = soften(scores[i], from, to, scale, running[row]);
        if (kept != 1.0f)
          for (int d = 0; d < width; d += L) store(out + d, load<F>(out + d) * kept);
        if (!strips)
          for (int j = from; j < to; ++j)
            for (int d = 0; d < width; d += L)
              store(out + d, fma(broadcast(scores[i][j]), load<F>(value_strips + j * width + d), load<F>(out + d)));
      }
      if (!strips) continue;
      for (int d = 0; d < width; d += 32) {
        const float *strip = value_strips + static_cast<size_t>(d / 16) * kKeys * 16;
        strip_product({scores[0], kKeys, n}, kKeys, strip, strip + kKeys * 16,
                      sums + static_cast<size_t>(tile) * width + d, width);
      }
    }
  }
  for (int row = 0; row < rows; ++row) {
    float *out = task.out + (task.first + row / task.group) * task.out_stride + (row % task.group) * task.head_dim;
    const float *in = sums + static_cast<size_t>(row) * width;
    for (int d = 0; d < task.head_dim; ++d) out[d] = in[d] / running[row].total;
  }
}

}  // namespace bitsmith::BITSMITH_ISA

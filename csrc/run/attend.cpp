// Attention of the heads that share keys and values, block of keys by block of keys (online softmax: Milakov and
// Gimelshein 2018; the order of work is FlashAttention's, Dao et al. 2022). Nothing is repeated or masked in memory.
#include <algorithm>
#include <cmath>

#include "exponential.h"
#include "products.h"
#include "scaled.h"

namespace bitsmith::BITSMITH_ISA {
namespace {

constexpr int kKeys = 64;      // keys worked on at a time
constexpr int kRows = 48;      // rows (queries times heads) of a tile
constexpr int kManyRows = 12;  // from so many heads on strips pay for a single query

// Some keys or values as float32 [count, width].
void read_rows(const HeadRows &rows, int first, int count, int width, float *out) {
  const size_t bytes = cache_row_bytes(rows.type, width);
  const uint8_t *p = rows.data + first * bytes;
  if (rows.type == CacheType::f32) std::memcpy(out, p, count * bytes);
  if (rows.type == CacheType::f16)
    for (int i = 0; i < count * width; i += kLanes) store(out + i, load_half(p + 2 * i));
  if (rows.type != CacheType::q8_0) return;
  for (int block = 0; block < count * width / 32; ++block, p += 34) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    const Floats scale = from_half(Words{} + bits);
    for (int i = 0; i < 32; i += kLanes)
      store(out + 32 * block + i, convert<Floats>(convert<Ints>(load<SignedBytes>(p + 2 + i))) * scale);
  }
}

// The softmax of one row so far: its largest score, and the sum of its weights.
struct Running {
  float largest, total;
};

// c tanh(x scale / c) for all scores of a row; tanh(u) = (1 - exp(-2 |u|)) / (1 + exp(-2 |u|)) with the sign of u.
void cap(float *scores, float scale, float softcap) {
  for (int j = 0; j < kKeys; j += kLanes) {
    const Floats u = load<Floats>(scores + j) * (scale / softcap);
    const Floats e = exponential(absolute(u) * -2.0f);
    const Floats size = (1.0f - e) / (1.0f + e) * softcap;
    store(scores + j, as<Floats>(as<Ints>(size) | (as<Ints>(u) & INT32_MIN)));
  }
}

// Turns the scores of one row in a block of keys into weights. Returns the factor for what was summed before.
float soften(float *scores, int from, int to, float scale, float softcap, Running &row) {
  if (softcap != 0.0f) {
    cap(scores, scale, softcap);
    scale = 1.0f;
  }
  for (int j = 0; j < kKeys; j += kLanes) store(scores + j, load<Floats>(scores + j) * scale);
  std::fill(scores, scores + from, -INFINITY);
  std::fill(scores + to, scores + kKeys, -INFINITY);
  Floats highest = splat(row.largest);
  for (int j = 0; j < kKeys; j += kLanes) highest = max(load<Floats>(scores + j), highest);
  const float most = largest(highest);
  const float kept = row.largest == most ? 1.0f : std::exp(row.largest - most);
  row.largest = most;
  Floats total{};
  for (int j = 0; j < kKeys; j += kLanes) {
    const Floats weight = exponential(load<Floats>(scores + j) - most);
    store(scores + j, weight);
    total += weight;
  }
  row.total = row.total * kept + sum(total);
  return kept;
}

// Some keys and values, as products with few or with many rows read them.
struct Block {
  int first, count, width;
  bool strips;    // many rows: keys are [keys / 16, width, 16], values [width / 16, keys, 16]
  float *keys;    // few: [count, width]
  float *values;  // the same
};

void read_block(const Attention &task, Block &block) {
  const int width = block.width;
  if (!block.strips) {
    read_rows(task.keys, block.first, block.count, width, block.keys);
    read_rows(task.values, block.first, block.count, width, block.values);
    return;
  }
  const size_t size = static_cast<size_t>(kKeys) * width;
  float *rows = scratch<float, 7>(size);
  read_rows(task.keys, block.first, block.count, width, rows);
  std::fill(block.keys, block.keys + size, 0.0f);
  for (int j = 0; j < block.count; ++j)
    for (int d = 0; d < width; ++d)
      block.keys[(static_cast<size_t>(j / 16) * width + d) * 16 + j % 16] = rows[j * width + d];
  read_rows(task.values, block.first, block.count, width, rows);
  std::fill(rows + block.count * width, rows + size, 0.0f);
  for (int j = 0; j < kKeys; ++j)
    for (int d = 0; d < width; d += 16)
      std::memcpy(block.values + (static_cast<size_t>(d / 16) * kKeys + j) * 16, rows + j * width + d, 64);
}

// Products of n queries [n, width] with the keys of a block.
void score(const Block &block, const float *queries, int n, float (*scores)[kKeys]) {
  const size_t width = block.width;
  if (!block.strips) {
    const FloatRows all{FloatType::f32, reinterpret_cast<const uint8_t *>(block.keys), block.width};
    for (int i = 0; i < n; ++i) floats_row(all, 0, block.count, queries + i * width, {0, 0, 4}, scores[i]);
    return;
  }
  std::fill(scores[0], scores[n], 0.0f);
  for (int j = 0; j < kKeys; j += 32) {
    const float *strip = block.keys + j * width;
    strip_product({queries, width, n}, block.width, strip, strip + width * 16, scores[0] + j, kKeys);
  }
}

// sums [n, width] += weights times the values of a block.
void mix(const Block &block, const float (*weights)[kKeys], int n, float *sums) {
  const size_t width = block.width;
  if (block.strips) {
    for (size_t d = 0; d < width; d += 32) {
      const float *strip = block.values + d * kKeys;
      strip_product({weights[0], kKeys, n}, kKeys, strip, strip + kKeys * 16, sums + d, width);
    }
    return;
  }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < block.count; ++j)
      for (size_t d = 0; d < width; d += kLanes) {
        float *out = sums + i * width + d;
        store(out, fma(splat(weights[i][j]), load<Floats>(block.values + j * width + d), load<Floats>(out)));
      }
}

// The keys a query sees, from the lowest to itself.
int lowest(const Attention &task, int query) { return task.window ? std::max(0, query - task.window + 1) : 0; }

}  // namespace

void keep(const float *x, int width, CacheType type, uint8_t *row) {
  if (type == CacheType::f32) std::memcpy(row, x, width * sizeof(float));
  if (type == CacheType::f16)
    for (int i = 0; i < width; i += kLanes) store_half(row + 2 * i, load<Floats>(x + i));
  if (type != CacheType::q8_0) return;
  for (int block = 0; block < width / 32; ++block, row += 34) {
    const Scaled in = scaled(x + 32 * block);
    uint16_t halves[kLanes];
    store_half(halves, splat(in.step));
    std::memcpy(row, halves, 2);
    for (int i = 0; i < 32 / kLanes; ++i)
      store_codes(reinterpret_cast<int8_t *>(row) + 2 + kLanes * i, rint_to_ints(in.values[i]));
  }
}

void attend(const Attention &task) {
  const int width = task.width, rows = task.count * task.group;
  const float scale = 1.0f / std::sqrt(static_cast<float>(task.head_dim));
  const auto position = [&](int row) { return task.start + task.first + row / task.group; };
  const int end = position(rows - 1) + 1;

  const size_t size = static_cast<size_t>(kKeys) * width;
  Block block{0, 0, width, !task.alone || task.group >= kManyRows, scratch<float, 8>(size), scratch<float, 9>(size)};
  float *sums = scratch<float, 5>(static_cast<size_t>(rows) * width);
  Running *running = scratch<Running, 6>(rows);
  std::fill(sums, sums + static_cast<size_t>(rows) * width, 0.0f);
  for (int row = 0; row < rows; ++row)
    running[row] = task.sinks ? Running{task.sinks[row % task.group], 1.0f} : Running{-1e30f, 0.0f};
  alignas(64) float scores[kRows][kKeys];

  block.first = lowest(task, position(0)) / kKeys * kKeys;  // so that sums do not depend on where the queries begin
  for (; block.first < end; block.first += kKeys) {
    block.count = std::min(kKeys, end - block.first);
    read_block(task, block);
    for (int tile = 0; tile < rows; tile += kRows) {
      const int n = std::min(kRows, rows - tile);
      if (position(tile + n - 1) < block.first) continue;
      score(block, task.queries + (static_cast<size_t>(task.first) * task.group + tile) * width, n, scores);
      for (int i = 0; i < n; ++i) {
        const int row = tile + i, at = position(row);
        const int from = std::clamp(lowest(task, at) - block.first, 0, block.count);
        const int to = std::clamp(at + 1 - block.first, from, block.count);
        if (from == to) {
          std::fill(scores[i], scores[i] + kKeys, 0.0f);
          continue;
        }
        const float kept = soften(scores[i], from, to, scale, task.softcap, running[row]);
        float *out = sums + static_cast<size_t>(row) * width;
        if (kept != 1.0f)
          for (int d = 0; d < width; d += kLanes) store(out + d, load<Floats>(out + d) * kept);
      }
      mix(block, scores, n, sums + static_cast<size_t>(tile) * width);
    }
  }
  for (int row = 0; row < rows; ++row) {
    float *out = task.out + (task.first + row / task.group) * task.out_stride + (row % task.group) * task.head_dim;
    const float *in = sums + static_cast<size_t>(row) * width;
    for (int d = 0; d < task.head_dim; ++d) out[d] = in[d] / running[row].total;
  }
}

}  // namespace bitsmith::BITSMITH_ISA

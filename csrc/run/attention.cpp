#include "attention.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace bitsmith {
namespace {

constexpr int kQueries = 64;  // positions of a piece of attention

// The first `dim` of a head turned by pairs.
void rotate(const float *x, int dim, int head_dim, const float *cosines, const float *sines, bool interleaved,
            float *y) {
  const int half = dim / 2;
  if (interleaved) {
    for (int i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cosines[i] - b * sines[i];
      y[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
  } else {
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      y[i] = a * cosines[i] - b * sines[i];
      y[i + half] = a * sines[i] + b * cosines[i];
    }
  }
  std::copy(x + dim, x + head_dim, y + dim);
}

// Queries of one sequence from `first` on, at most kQueries.
struct Tile {
  int sequence, first;
};

std::vector<Tile> tiles_of(const Pass &pass) {
  std::vector<Tile> tiles;
  for (size_t i = 0; i < pass.sequences.size(); ++i)
    for (int first = 0; first < pass.sequences[i].count; first += kQueries)
      tiles.push_back({static_cast<int>(i), first});
  // the last queries see most keys: they go first
  const auto end = [&](const Tile &tile) { return pass.sequences[tile.sequence].start + tile.first; };
  std::stable_sort(tiles.begin(), tiles.end(), [&](const Tile &a, const Tile &b) { return end(a) > end(b); });
  return tiles;
}

}  // namespace

struct SelfAttention::Heads {
  float *q, *k, *v;         // [rows, stride]
  size_t q_stride, stride;  // stride: of k and v
  float *turned;            // queries, of each sequence: [kv_heads, count, group, width]
  float *mix;               // [rows, heads, head_dim]
};

SelfAttention::SelfAttention(const AttentionShape &shape, Linear q, Linear k, Linear v, Linear output,
                             std::vector<float> q_norm, std::vector<float> k_norm, std::vector<float> sinks)
    : shape_(shape),
      q_(std::move(q)),
      k_(std::move(k)),
      v_(std::move(v)),
      output_(std::move(output)),
      q_norm_(std::move(q_norm)),
      k_norm_(std::move(k_norm)),
      sinks_(std::move(sinks)),
      ones_(shape.value_norms ? shape.head_dim : 0, 1.0f) {
  if (shape.layer < 0 || shape.kv_heads < 1 || shape.heads < 1 || shape.heads % shape.kv_heads || shape.head_dim < 1 ||
      shape.rotation < -1 || shape.temperature_length < 1 || !q_.weight || !output_.weight ||
      (v_.weight && !k_.weight) || (shape.gated && shape.whole_norms))
    throw std::invalid_argument("the shape of an attention makes no sense.");
  const size_t q_size = shape.whole_norms ? shape.heads * shape.head_dim : shape.head_dim;
  const size_t k_size = shape.whole_norms ? shape.kv_heads * shape.head_dim : shape.head_dim;
  const bool normed = !q_norm_.empty();
  if (q_norm_.size() != (normed ? q_size : 0) || k_norm_.size() != (normed && k_.weight ? k_size : 0))
    throw std::invalid_argument("a norm of q or k has the wrong length.");
  if (!sinks_.empty() && static_cast<int>(sinks_.size()) != shape.heads)
    throw std::invalid_argument("there must be a sink for each head.");
}

std::vector<const Linear *> SelfAttention::inputs() const {
  std::vector<const Linear *> found{&q_};
  for (const Linear *linear : {&k_, &v_})
    if (linear->weight) found.push_back(linear);
  return found;
}

void SelfAttention::check(int hidden) const {
  const int width = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  check_linear("q", q_, shape_.gated ? 2 * width : width, hidden);
  if (k_.weight) check_linear("k", k_, kv, hidden);
  if (v_.weight) check_linear("v", v_, kv, hidden);
  check_linear("output", output_, hidden, width);
}

void SelfAttention::check(const Cache &cache) const {
  const auto &layers = cache.shape().layers;
  if (shape_.layer >= static_cast<int>(layers.size()) ||
      !(layers[shape_.layer] == KeptHeads{shape_.kv_heads, shape_.head_dim}) || shape_.rotation >= cache.rotations() ||
      (shape_.rotation >= 0 && cache.rotation(shape_.rotation).dim > shape_.head_dim))
    throw std::invalid_argument("the cache does not fit the model.");
}

void SelfAttention::run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const {
  const int rows = pass.rows(), width = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  const size_t turned = static_cast<size_t>(rows) * shape_.heads * pass.cache.shape().layers[shape_.layer].width();
  Heads heads{};
  heads.q_stride = padded(shape_.gated ? 2 * width : width), heads.stride = padded(kv);
  heads.q = compute.scratch(Scratch::q, rows * heads.q_stride);
  heads.k = compute.scratch(Scratch::k, rows * heads.stride);
  heads.v = compute.scratch(Scratch::v, rows * heads.stride);
  heads.turned = compute.scratch(Scratch::turned, turned);
  heads.mix = compute.scratch(Scratch::mix, static_cast<size_t>(rows) * width);
  const Product qkv[3] = {
      {&q_, {x}, heads.q, heads.q_stride}, {&k_, {x}, heads.k, heads.stride}, {&v_, {x}, heads.v, heads.stride}};
  compute.multiply(qkv, v_.weight ? 3 : k_.weight ? 2 : 1);
  attend(compute, pass, heads);
  if (shape_.gated)
    compute.each_row(rows, [&](int row) {
      const float *gates = heads.q + row * heads.q_stride + shape_.head_dim;
      float *mix = heads.mix + static_cast<size_t>(row) * width;
      for (int h = 0; h < shape_.heads; ++h)
        compute.kernels().gate_by(gates + 2 * h * shape_.head_dim, mix + h * shape_.head_dim, shape_.head_dim);
    });
  compute.round(heads.mix, width, rows, width, {&output_});
  compute.multiply(output_, {{heads.mix, static_cast<size_t>(width), rows}}, out, stride);
}

// Biases and norms of a position's queries, keys or values, `count` heads that are `step` apart; norms behind the
// rotation come later.
void SelfAttention::prepare(const Kernels &kernels, float *rows, int count, int step, const Linear &linear,
                            const std::vector<float> &norm) const {
  const int head_dim = shape_.head_dim;
  if (!linear.bias.empty()) add(rows, linear.bias.data(), linear.bias.size());
  if (norm.empty()) return;
  if (shape_.whole_norms) return kernels.rms_norm(rows, norm.data(), count * head_dim, shape_.norm_eps, rows);
  for (int h = 0; h < count && !shape_.late_norms; ++h)
    kernels.rms_norm(rows + h * step, norm.data(), head_dim, shape_.norm_eps, rows + h * step);
}

// A head of the position `at`, rotated.
void SelfAttention::turn(const Kernels &kernels, const Pass &pass, int at, const float *from,
                         const std::vector<float> &norm, float *to) const {
  const bool rotates = shape_.rotation >= 0;
  const Rotation::Tables *tables = rotates ? &pass.cache.rotation(shape_.rotation).tables(pass.stop) : nullptr;
  const int dim = rotates ? pass.cache.rotation(shape_.rotation).dim : 0;
  const size_t row = static_cast<size_t>(at) * (dim / 2);
  rotate(from, dim, shape_.head_dim, rotates ? tables->cosines.data() + row : nullptr,
         rotates ? tables->sines.data() + row : nullptr, shape_.interleaved, to);
  if (shape_.late_norms && !norm.empty() && !shape_.whole_norms)
    kernels.rms_norm(to, norm.data(), shape_.head_dim, shape_.norm_eps, to);
}

// Biases, norms and rotation of one position's queries.
void SelfAttention::place_queries(const Kernels &kernels, Pass &pass, const Heads &heads, int row) const {
  const int head_dim = shape_.head_dim, width = pass.cache.shape().layers[shape_.layer].width();
  const Pass::Sequence &sequence = pass.sequences[pass.sequence_of[row]];
  const int index = row - sequence.first, at = sequence.start + index;
  const float heat = std::log1p(static_cast<float>(at / shape_.temperature_length));
  const float factor = shape_.query_scale * (1.0f + shape_.temperature * heat);
  const int step = shape_.gated ? 2 * head_dim : head_dim;  // from one head to the next
  float *q = heads.q + row * heads.q_stride;
  prepare(kernels, q, shape_.heads, step, q_, q_norm_);
  const int group = shape_.heads / shape_.kv_heads;
  for (int h = 0; h < shape_.heads; ++h) {
    const size_t place = static_cast<size_t>(sequence.first) * shape_.kv_heads + h / group * sequence.count + index;
    float *turned = heads.turned + (place * group + h % group) * width;
    turn(kernels, pass, at, q + h * step, q_norm_, turned);
    scale(turned, factor, head_dim);
    std::fill(turned + head_dim, turned + width, 0.0f);
  }
}

// Biases, norms and rotation of one position's keys and values, which go to the cache.
void SelfAttention::place_keys(const Kernels &kernels, Pass &pass, const Heads &heads, int row) const {
  const int head_dim = shape_.head_dim, layer = shape_.layer, width = pass.cache.shape().layers[layer].width();
  const Pass::Sequence &sequence = pass.sequences[pass.sequence_of[row]];
  const int at = sequence.start + row - sequence.first;
  float *k = heads.k + row * heads.stride, *v = heads.v + row * heads.stride;
  if (!v_.weight) std::copy(k, k + shape_.kv_heads * head_dim, v);
  prepare(kernels, k, shape_.kv_heads, head_dim, k_, k_norm_);
  prepare(kernels, v, shape_.kv_heads, head_dim, v_.weight ? v_ : k_, {});
  static thread_local std::vector<float> head;
  head.assign(width, 0.0f);
  const CacheType type = pass.cache.shape().type;
  for (int h = 0; h < shape_.kv_heads; ++h) {
    const size_t to = pass.cache.head(layer, sequence.slot, h) + at * pass.cache.row_bytes(layer);
    turn(kernels, pass, at, k + h * head_dim, k_norm_, head.data());
    kernels.keep(head.data(), width, type, pass.cache.keys() + to);
    if (ones_.empty())
      std::copy(v + h * head_dim, v + (h + 1) * head_dim, head.data());
    else
      kernels.rms_norm(v + h * head_dim, ones_.data(), head_dim, shape_.norm_eps, head.data());
    kernels.keep(head.data(), width, type, pass.cache.values() + to);
  }
}

void SelfAttention::attend(Compute &compute, Pass &pass, const Heads &heads) const {
  const Stopwatch watch(compute.times().attention);
  const Kernels &kernels = compute.kernels();
  const int width = pass.cache.shape().layers[shape_.layer].width(), group = shape_.heads / shape_.kv_heads;
  compute.each_row(pass.rows(), [&](int row) {
    place_queries(kernels, pass, heads, row);
    if (k_.weight) place_keys(kernels, pass, heads, row);
  });
  const std::vector<Tile> tiles = tiles_of(pass);
  compute.run(static_cast<int>(tiles.size()) * shape_.kv_heads, [&](int piece) {
    const Tile &tile = tiles[piece / shape_.kv_heads];
    const Pass::Sequence &sequence = pass.sequences[tile.sequence];
    const int h = piece % shape_.kv_heads;
    const size_t at = pass.cache.head(shape_.layer, sequence.slot, h), row = sequence.first;
    Attention task{};
    task.queries = heads.turned + (row * shape_.kv_heads + static_cast<size_t>(h) * sequence.count) * group * width;
    task.first = tile.first;
    task.count = std::min(kQueries, sequence.count - tile.first);
    task.start = sequence.start;
    task.group = group;
    task.width = width;
    task.head_dim = shape_.head_dim;
    task.window = shape_.window;
    task.alone = tile.sequence < pass.single;
    task.softcap = shape_.softcap;
    task.sinks = sinks_.empty() ? nullptr : sinks_.data() + static_cast<size_t>(h) * group;
    task.keys = {pass.cache.keys() + at, pass.cache.shape().type};
    task.values = {pass.cache.values() + at, pass.cache.shape().type};
    task.out_stride = static_cast<size_t>(shape_.heads) * shape_.head_dim;
    task.out = heads.mix + row * task.out_stride + static_cast<size_t>(h) * group * shape_.head_dim;
    kernels.attend(task);
  });
}

}  // namespace bitsmith

// The decoder of model/decoder.py on packed weights: all layers of a forward pass in one call.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "cache.h"
#include "kernels.h"
#include "matrix.h"
#include "pool.h"
#include "reading.h"

namespace bitsmith {

struct Linear {
  std::shared_ptr<Matrix> weight;
  std::vector<float> bias;  // [rows], or empty
};

struct Block {
  std::vector<float> attn_norm, ffn_norm, q_norm, k_norm;  // the last two may be empty
  Linear q, k, v, output, gate, up, down;
  int window = 0;
  int rotation = 0;                          // number of the cache's rotation; -1 for none
  std::vector<float> attn_after, ffn_after;  // norms behind attention and MLP, or empty; those before may be empty, too
};

// What families vary about the network.
struct Variation {
  float embedding_scale = 1.0f, residual_scale = 1.0f;
  float query_scale = 1.0f;  // beside 1 / sqrt(head_dim)
  float temperature = 0.0f;  // queries at position p are multiplied by 1 + temperature ln(1 + p / temperature_length)
  int temperature_length = 1;
  bool gelu = false;         // the tanh form, in place of silu
  bool whole_norms = false;  // q and k are normed over all heads
  bool late_norms = false;   // q and k are normed after their rotation
};

struct Shape {
  int hidden, heads, kv_heads, head_dim;
  float norm_eps;
  bool interleaved;  // rotated pairs are (2 i, 2 i + 1), else (i, i + dim / 2)
  bool exact;        // inputs of products are not rounded
  bool fine;         // inputs of several rows are rounded twice, the second time what was lost: to 15 bits as well
  Variation vary{};
};

// What products want of their input: blocks of int8, bfloat16 by rows or for tiles; `rest`: also what blocks or tiles
// lost.
struct Roundings {
  bool blocks, bfloats, tiles, rest;
};

// Rounded rows and the memory they lie in.
class RoundedBuffer {
 public:
  void resize(Roundings wanted, int rows, int cols) {
    cols_ = cols;
    if (wanted.bfloats && bfloats_.size() < static_cast<size_t>(rows) * cols)
      bfloats_.resize(static_cast<size_t>(rows) * cols);
    if (wanted.tiles) {
      const size_t tiled = static_cast<size_t>((rows + kTileRows - 1) / kTileRows) * kTileRows * tiled_cols();
      upper_.resize(tiled);
      if (wanted.rest) lower_.resize(tiled);
    }
    if (!wanted.blocks) return;
    const size_t size = static_cast<size_t>(rows) * (cols / 32);
    if (rows == 1 && fine_.size() < size) fine_.resize(size);
    if (rows == 1 && sums_.size() < size / 8 + 1) sums_.resize(size / 8 + 1);
    const size_t all = wanted.rest ? 2 * size : size;
    if (rows > 1 && blocks_.size() < all) blocks_.resize(all);
  }
  // Round row i of `rows`; a single row finely.
  void round(const Kernels &kernels, Roundings wanted, const float *x, int rows, int i) {
    if (wanted.bfloats) kernels.to_bfloat(x, cols_, bfloats_.data() + static_cast<size_t>(i) * cols_);
    if (wanted.tiles) kernels.to_tiles(x, cols_, i, tiled_cols(), upper_.data(), wanted.rest ? lower_.data() : nullptr);
    if (!wanted.blocks) return;
    if (rows == 1)
      kernels.round_fine(x, cols_, fine_.data(), sums_.data());
    else
      round_rows(kernels, wanted, x, rows, i);
  }
  // Behind them the rows of what their rounding lost, where that is wanted.
  RoundedRows rows() const { return {blocks_.data(), cols_}; }
  FineRow fine() const { return {fine_.data(), sums_.data()}; }
  TiledRows tiles(int rows, bool rest) const {
    return {upper_.data(), rest ? lower_.data() : nullptr, rows, tiled_cols()};
  }
  BfloatRows bfloats() const { return {bfloats_.data(), static_cast<size_t>(cols_)}; }

 private:
  void round_rows(const Kernels &kernels, Roundings wanted, const float *x, int rows, int i) {
    const size_t length = cols_ / 32;
    RoundedBlock *to = blocks_.data() + i * length;
    kernels.round_row(x, cols_, to);
    if (!wanted.rest) return;
    static thread_local std::vector<float> lost;
    lost.resize(cols_);
    for (int k = 0; k < cols_; ++k) lost[k] = x[k] - to[k / 32].scale * static_cast<float>(to[k / 32].codes[k % 32]);
    kernels.round_row(lost.data(), cols_, to + rows * length);
  }

  int tiled_cols() const { return (cols_ + 31) / 32 * 32; }

  int cols_ = 0;
  Aligned<uint16_t> upper_, lower_;
  std::vector<RoundedBlock> blocks_;
  std::vector<FineBlock> fine_;
  std::vector<FineSums> sums_;
  std::vector<uint16_t> bfloats_;
};

struct Interrupted {};

// Tokens for some slots of a cache: row i puts the first counts[i] of its n tokens behind the first starts[i] positions
// of slots[i].
struct Feed {
  const int64_t *tokens;  // [rows, n]
  int rows, n;
  const int64_t *slots, *starts, *counts;  // [rows] each; slots distinct, counts in 1..n
};

// Seconds spent in forward passes.
struct Times {
  double total = 0, products = 0, attention = 0;
};

class Model {
 public:
  Model(const Shape &shape, Isa isa, std::shared_ptr<Pool> pool);

  // Both throw std::invalid_argument where sizes do not match.
  void add_block(Block block);
  void set_variation(const Variation &variation) { shape_.vary = variation; }
  void set_ends(std::shared_ptr<Matrix> embedding, std::vector<float> norm, std::shared_ptr<Matrix> output);

  // Hidden states after the last layer, out [rows, n, hidden]; filler's are left as they are.
  // `go_on` is asked before each layer of more than one token; where it says no, Interrupted is thrown. Throws
  // std::invalid_argument where the cache does not fit, or a token is out of range.
  void hidden(const Feed &feed, Cache &cache, float *out, const std::function<bool()> &go_on);

  // Logits of some hidden states: out [rows, vocab].
  void logits(const float *hidden, int rows, float *out);

  // How packed matrices, and float matrices, are read for a single row.
  void set_reading(const Reading &packed, const Reading &floats) { packed_reading_ = packed, float_reading_ = floats; }
  const Times &times() const { return times_; }

  const Shape &shape() const { return shape_; }
  const Matrix &embedding() const { return *embedding_; }
  bool complete() const { return output_ != nullptr; }
  const Matrix &output() const { return *output_; }
  const std::vector<Block> &blocks() const { return blocks_; }

 private:
  struct Input {
    Rows floats;
    int cols;
    const RoundedBuffer *rounded;
  };
  struct Product {
    const Linear *linear;
    float *out;
    size_t stride;
  };
  struct Piece {
    int product, first, count;  // groups of 16 rows
  };
  struct Step;  // what the layers of one pass share

  void multiply(const Input &x, const Product *products, int count);
  template <class Body>
  void each_row(int rows, const Body &body);
  void multiply_part(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const;
  void multiply_rows(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const;
  bool halves(const Matrix &w) const;
  bool tiled(const Matrix &w, int rows) const;
  int panels_of_a_piece(const Matrix &w, int rows, int left) const;
  Roundings roundings(std::initializer_list<const Linear *> linears, int rows) const;
  void check(const char *name, const Linear &linear, int rows, int cols) const;
  void attention(int layer, const Block &block, Step &step);
  void place_heads(int layer, const Block &block, Step &step, int row);
  void run_block(int layer, const Block &block, Step &step);

  Shape shape_;
  const Kernels &kernels_;
  std::shared_ptr<Pool> pool_;
  std::vector<Block> blocks_;
  std::shared_ptr<Matrix> embedding_, output_;
  std::vector<float> output_norm_;
  Reading packed_reading_ = kReadings[0], float_reading_ = kReadings[0];
  Times times_;
  std::mutex mutex_;
  RoundedBuffer rounded_;
  std::vector<Piece> pieces_;
  std::vector<float> x_, normed_, q_, k_, v_, turned_, mix_, gate_, up_, added_;
};

}  // namespace bitsmith

#include "model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace bitsmith {
namespace {

// Rows of a buffer that products write: they may write a few columns too many.
size_t padded(int cols) { return (static_cast<size_t>(cols) + 31) / 32 * 32; }

float *sized(std::vector<float> &buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

void add(float *x, const float *y, size_t n) {
  for (size_t i = 0; i < n; ++i) x[i] += y[i];
}

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

// Adds the time it lives to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double &seconds) : seconds_(seconds), start_(Clock::now()) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  double &seconds_;
  Clock::time_point start_;
};

void scale(float *x, float factor, size_t n) {
  if (factor == 1.0f) return;
  for (size_t i = 0; i < n; ++i) x[i] *= factor;
}

constexpr int kFewRows = 4;       // with fewer, float matrices are read once for each row
constexpr int kTiledRows = 8;     // from so many rows on, tiles are faster
constexpr int kTiledPanels = 16;  // of a piece on tiles at most, which reads its inputs once
constexpr int kQueries = 64;      // positions of a piece of attention

}  // namespace

void Cache::copy(Cache &other, const int64_t *lengths) {
  for (int layer = 0; layer < shape_.layers; ++layer)
    for (int slot = 0; slot < shape_.batch; ++slot)
      for (int h = 0; h < shape_.kv_heads; ++h) {
        const size_t size = static_cast<size_t>(lengths[slot]) * row_bytes();
        std::memcpy(keys() + head(layer, slot, h), other.keys() + other.head(layer, slot, h), size);
        std::memcpy(values() + head(layer, slot, h), other.values() + other.head(layer, slot, h), size);
      }
}

// The tokens of a pass without filler, sequence by sequence.
struct Model::Step {
  struct Sequence {
    int slot, start, count;  // positions start.. of its slot are new
    int first;               // row of its first token in the pass
  };
  struct Tile {
    int sequence, first;  // queries from `first` on, at most kQueries
  };

  Step(const Feed &feed, Cache &cache) : cache(cache) {
    sequences.reserve(feed.rows);
    for (int i = 0; i < feed.rows; ++i) {
      const int start = static_cast<int>(feed.starts[i]), count = static_cast<int>(feed.counts[i]);
      sequences.push_back({static_cast<int>(feed.slots[i]), start, count, rows()});
      sequence_of.insert(sequence_of.end(), count, i);
      for (int first = 0; first < count; first += kQueries) tiles.push_back({i, first});
    }
    // the last queries see most keys: they go first
    const auto end = [&](const Tile &tile) { return sequences[tile.sequence].start + tile.first; };
    std::stable_sort(tiles.begin(), tiles.end(), [&](const Tile &a, const Tile &b) { return end(a) > end(b); });
  }
  int rows() const { return static_cast<int>(sequence_of.size()); }

  Cache &cache;
  std::vector<Sequence> sequences;
  std::vector<int> sequence_of;  // [rows]
  std::vector<Tile> tiles;
};

Model::Model(const Shape &shape, Isa isa, std::shared_ptr<Pool> pool)
    : shape_(shape), kernels_(kernels(isa)), pool_(std::move(pool)) {}

void Model::check(const char *name, const Linear &linear, int rows, int cols) const {
  const Matrix &w = *linear.weight;
  if (w.rows() == rows && w.cols() == cols && (linear.bias.empty() || static_cast<int>(linear.bias.size()) == rows))
    return;
  throw std::invalid_argument(std::string(name) + ": expected [" + std::to_string(rows) + ", " + std::to_string(cols) +
                              "], found [" + std::to_string(w.rows()) + ", " + std::to_string(w.cols()) + "].");
}

void Model::add_block(Block block) {
  const int width = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim,
            ffn = block.gate.weight->rows();
  check("q", block.q, width, shape_.hidden);
  check("k", block.k, kv, shape_.hidden);
  check("v", block.v, kv, shape_.hidden);
  check("output", block.output, shape_.hidden, width);
  check("gate", block.gate, ffn, shape_.hidden);
  check("up", block.up, ffn, shape_.hidden);
  check("down", block.down, shape_.hidden, ffn);
  const auto norm = [](const std::vector<float> &v, int size) { return static_cast<int>(v.size()) == size; };
  const bool whole = shape_.vary.whole_norms;
  const bool heads =
      (block.q_norm.empty() && block.k_norm.empty()) ||
      (norm(block.q_norm, whole ? width : shape_.head_dim) && norm(block.k_norm, whole ? kv : shape_.head_dim));
  bool sound = heads && block.rotation >= -1 && block.rotation <= 1;
  for (const auto *each : {&block.attn_norm, &block.ffn_norm, &block.attn_after, &block.ffn_after})
    sound &= each->empty() || norm(*each, shape_.hidden);
  if (!sound) throw std::invalid_argument("a norm has the wrong length.");
  blocks_.push_back(std::move(block));
}

void Model::set_ends(std::shared_ptr<Matrix> embedding, std::vector<float> norm, std::shared_ptr<Matrix> output) {
  if (embedding->cols() != shape_.hidden || output->cols() != shape_.hidden ||
      static_cast<int>(norm.size()) != shape_.hidden)
    throw std::invalid_argument("embedding, norm or output do not match the hidden size.");
  embedding_ = std::move(embedding);
  output_norm_ = std::move(norm);
  output_ = std::move(output);
}

// Whether products with w are taken in bfloat16.
bool Model::halves(const Matrix &w) const {
  return !w.packed() && !shape_.exact && kernels_.floats_rows_rounded && w.floats().type != FloatType::f32 &&
         w.cols() % 2 == 0;
}

// Whether products with w are taken on tiles.
bool Model::tiled(const Matrix &w, int rows) const {
  return kernels_.panels_tiles && rows >= kTiledRows && !shape_.exact &&
         (w.packed() || w.floats().type != FloatType::f32);
}

Roundings Model::roundings(std::initializer_list<const Linear *> linears, int rows) const {
  Roundings found{false, false, false, shape_.fine && rows > 1};
  for (const Linear *linear : linears) {
    const bool tiles = tiled(*linear->weight, rows);
    found.tiles |= tiles;
    found.blocks |= linear->weight->packed() && !shape_.exact && !tiles;
    found.bfloats |= rows >= kFewRows && halves(*linear->weight) && !tiles;
  }
  return found;
}

// Call body(row) for all rows, several of them a piece.
template <class Body>
void Model::each_row(int rows, const Body &body) {
  const int step = std::max(1, rows / (8 * pool_->threads()));
  pool_->run((rows + step - 1) / step, [&](int piece) {
    for (int row = piece * step; row < std::min(rows, (piece + 1) * step); ++row) body(row);
  });
}

// Groups of 16 rows of w for one piece of work, of those that are left.
int Model::panels_of_a_piece(const Matrix &w, int rows, int left) const {
  const int threads = pool_->threads();
  if (rows == 1) return next_piece(left, threads);
  if (!tiled(w, rows)) return 2;
  return std::clamp(left / (3 * threads) / 2 * 2, 2, kTiledPanels);
}

// All rows of the input times several matrices, as one loop over groups of their rows.
void Model::multiply(const Input &x, const Product *products, int count) {
  const Stopwatch watch(times_.products);
  pieces_.clear();
  int left = 0;
  for (int i = 0; i < count; ++i) left += products[i].linear->weight->row_panels();
  for (int i = 0; i < count; ++i) {
    const int panels = products[i].linear->weight->row_panels();
    for (int first = 0; first < panels;) {
      const int wanted = panels_of_a_piece(*products[i].linear->weight, x.floats.count, left);
      const int n = std::min(wanted, panels - first);
      pieces_.push_back({i, first, n});
      first += n;
      left -= n;
    }
  }
  pool_->run(static_cast<int>(pieces_.size()), [&](int at) {
    const Piece &piece = pieces_[at];
    const Product &product = products[piece.product];
    multiply_part(x, *product.linear->weight, piece.first, piece.count, product.out + piece.first * kPanelRows,
                  product.stride);
  });
}

// The same for `count` groups of 16 rows of one matrix.
void Model::multiply_part(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  if (tiled(w, x.floats.count)) {
    const TiledRows tiles = x.rounded->tiles(x.floats.count, shape_.fine);
    if (w.packed()) return kernels_.panels_tiles(w.panels(), first, count, tiles, y, stride);
    const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
    return kernels_.floats_tiles(w.floats(), row, rows, tiles, y, stride);
  }
  if (w.packed()) {
    if (shape_.exact)
      kernels_.panels_exact(w.panels(), first, count, x.floats, y, stride);
    else if (x.floats.count == 1)
      kernels_.panels_row(w.panels(), first, count, x.rounded->fine(), packed_reading_, y);
    else
      multiply_rows(x, w, first, count, y, stride);
    return;
  }
  const int row = first * kPanelRows, rows = std::min(count * kPanelRows, w.rows() - row);
  if (x.floats.count < kFewRows) {
    for (int i = 0; i < x.floats.count; ++i)
      kernels_.floats_row(w.floats(), row, rows, x.floats.data + i * x.floats.stride, float_reading_, y + i * stride);
  } else if (halves(w)) {
    kernels_.floats_rows_rounded(w.floats(), row, rows, x.rounded->bfloats(), x.floats.count, y, stride);
  } else {
    kernels_.floats_rows(w.floats(), row, rows, x.floats, y, stride);
  }
}

// Several rows of a rounded input times a packed matrix. What was rounded twice is multiplied twice and added; the
// matrix is unpacked once.
void Model::multiply_rows(const Input &x, const Matrix &w, int first, int count, float *y, size_t stride) const {
  const int rows = x.floats.count;
  if (!shape_.fine) return kernels_.panels_rows(w.panels(), first, count, x.rounded->rows(), rows, y, stride);
  static thread_local std::vector<float> products;
  const size_t width = padded(count * kPanelRows);
  float *both = sized(products, 2 * rows * width);
  kernels_.panels_rows(w.panels(), first, count, x.rounded->rows(), 2 * rows, both, width);
  for (int i = 0; i < rows; ++i) {
    const float *coarse = both + i * width, *rest = both + (rows + i) * width;
    for (int k = 0; k < count * kPanelRows; ++k) y[i * stride + k] = coarse[k] + rest[k];
  }
}

void Model::hidden(const Feed &feed, Cache &cache, float *out, const std::function<bool()> &go_on) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Stopwatch watch(times_.total);
  const CacheShape &kept = cache.shape();
  if (kept.layers != static_cast<int>(blocks_.size()) || kept.kv_heads != shape_.kv_heads ||
      kept.head_dim != shape_.head_dim || !embedding_)
    throw std::invalid_argument("the cache does not fit the model.");
  for (const Block &block : blocks_)
    if (block.rotation == 1 && !cache.has_more()) throw std::invalid_argument("the cache has one rotation only.");
  Step step(feed, cache);
  const size_t hidden = shape_.hidden;
  const auto token = [&](int row) {
    const int i = step.sequence_of[row];
    return feed.tokens[static_cast<size_t>(i) * feed.n + row - step.sequences[i].first];
  };
  for (int row = 0; row < step.rows(); ++row)
    if (token(row) < 0 || token(row) >= embedding_->rows()) throw std::invalid_argument("a token is out of range.");
  float *x = sized(x_, step.rows() * hidden);
  each_row(step.rows(), [&](int row) {
    embedding_->decode(kernels_, static_cast<int>(token(row)), x + row * hidden);
    scale(x + row * hidden, shape_.vary.embedding_scale, hidden);
  });
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    if (step.rows() > 1 && !go_on()) throw Interrupted{};
    run_block(static_cast<int>(layer), blocks_[layer], step);
  }
  for (int i = 0; i < feed.rows; ++i) {
    const Step::Sequence &sequence = step.sequences[i];
    const float *from = x + sequence.first * hidden;
    std::copy(from, from + sequence.count * hidden, out + static_cast<size_t>(i) * feed.n * hidden);
  }
}

void Model::run_block(int layer, const Block &block, Step &step) {
  const int rows = step.rows(), hidden = shape_.hidden, ffn = block.gate.weight->rows();
  const int width = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
  float *x = x_.data();
  float *normed = sized(normed_, static_cast<size_t>(rows) * hidden);
  const auto norm = [&](const std::vector<float> &weight, Roundings rounded) {
    rounded_.resize(rounded, rows, hidden);
    each_row(rows, [&](int row) {
      float *to = normed + static_cast<size_t>(row) * hidden;
      const float *from = x + static_cast<size_t>(row) * hidden;
      if (weight.empty())
        std::copy(from, from + hidden, to);
      else
        kernels_.rms_norm(from, weight.data(), hidden, shape_.norm_eps, to);
      rounded_.round(kernels_, rounded, to, rows, row);
    });
  };
  const auto into_x = [&](const Linear &linear, const Rows &from, const std::vector<float> &after) {
    const size_t stride = padded(hidden);
    float *added = sized(added_, rows * stride);
    const Product product{&linear, added, stride};
    multiply({from, linear.weight->cols(), &rounded_}, &product, 1);
    const bool plain = after.empty() && shape_.vary.residual_scale == 1.0f;
    each_row(rows, [&](int row) {
      float *own = added + row * stride, *to = x + static_cast<size_t>(row) * hidden;
      if (!plain && !linear.bias.empty()) add(own, linear.bias.data(), hidden);
      if (!after.empty()) kernels_.rms_norm(own, after.data(), hidden, shape_.norm_eps, own);
      scale(own, shape_.vary.residual_scale, hidden);
      add(to, own, hidden);
      if (plain && !linear.bias.empty()) add(to, linear.bias.data(), hidden);
    });
  };

  norm(block.attn_norm, roundings({&block.q, &block.k, &block.v}, rows));
  const Rows normed_rows{normed, static_cast<size_t>(hidden), rows};
  const Product qkv[3] = {{&block.q, sized(q_, rows * padded(width)), padded(width)},
                          {&block.k, sized(k_, rows * padded(kv)), padded(kv)},
                          {&block.v, sized(v_, rows * padded(kv)), padded(kv)}};
  multiply({normed_rows, hidden, &rounded_}, qkv, 3);
  attention(layer, block, step);
  const Roundings mixed = roundings({&block.output}, rows);
  rounded_.resize(mixed, rows, width);
  each_row(rows, [&](int row) {
    rounded_.round(kernels_, mixed, mix_.data() + static_cast<size_t>(row) * width, rows, row);
  });
  into_x(block.output, {mix_.data(), static_cast<size_t>(width), rows}, block.attn_after);

  norm(block.ffn_norm, roundings({&block.gate, &block.up}, rows));
  const size_t stride = padded(ffn);
  const Product both[2] = {{&block.gate, sized(gate_, rows * stride), stride},
                           {&block.up, sized(up_, rows * stride), stride}};
  multiply({normed_rows, hidden, &rounded_}, both, 2);
  const Roundings rounded = roundings({&block.down}, rows);
  rounded_.resize(rounded, rows, ffn);
  each_row(rows, [&](int row) {
    float *gate = gate_.data() + row * stride, *up = up_.data() + row * stride;
    if (!block.gate.bias.empty()) add(gate, block.gate.bias.data(), ffn);
    if (!block.up.bias.empty()) add(up, block.up.bias.data(), ffn);
    if (shape_.vary.gelu)
      kernels_.geglu(gate, up, ffn);
    else
      kernels_.swiglu(gate, up, ffn);
    rounded_.round(kernels_, rounded, gate, rows, row);
  });
  into_x(block.down, {gate_.data(), stride, rows}, block.ffn_after);
}

// Biases, norms and rotation of one position's heads; its keys and values go to the cache.
void Model::place_heads(int layer, const Block &block, Step &step, int row) {
  const int head_dim = shape_.head_dim, width = step.cache.width();
  const Step::Sequence &sequence = step.sequences[step.sequence_of[row]];
  const int index = row - sequence.first, at = sequence.start + index;
  const int which = std::max(block.rotation, 0), rotated = block.rotation < 0 ? 0 : step.cache.rotated();
  const float *cosines = step.cache.cosines(at, which), *sines = step.cache.sines(at, which);
  const Variation &vary = shape_.vary;
  const auto norm_head = [&](const std::vector<float> &norm, float *head) {
    if (!norm.empty() && !vary.whole_norms) kernels_.rms_norm(head, norm.data(), head_dim, shape_.norm_eps, head);
  };
  const auto prepare = [&](float *heads, int count, const Linear &linear, const std::vector<float> &norm) {
    const int size = count * head_dim;
    if (!linear.bias.empty()) add(heads, linear.bias.data(), size);
    if (!norm.empty() && vary.whole_norms) kernels_.rms_norm(heads, norm.data(), size, shape_.norm_eps, heads);
    for (int h = 0; h < count && !vary.late_norms; ++h) norm_head(norm, heads + h * head_dim);
  };
  const auto turn = [&](const float *from, const std::vector<float> &norm, float *to) {
    rotate(from, rotated, head_dim, cosines, sines, shape_.interleaved, to);
    if (vary.late_norms) norm_head(norm, to);
  };
  const float heat = std::log1p(static_cast<float>(at / vary.temperature_length));
  const float factor = vary.query_scale * (1.0f + vary.temperature * heat);
  float *q = q_.data() + row * padded(shape_.heads * head_dim);
  prepare(q, shape_.heads, block.q, block.q_norm);
  const int group = shape_.heads / shape_.kv_heads;
  for (int h = 0; h < shape_.heads; ++h) {  // turned, of each sequence: [kv_heads, count, group, width]
    const size_t place = static_cast<size_t>(sequence.first) * shape_.kv_heads + h / group * sequence.count + index;
    float *turned = turned_.data() + (place * group + h % group) * width;
    turn(q + h * head_dim, block.q_norm, turned);
    scale(turned, factor, head_dim);
    std::fill(turned + head_dim, turned + width, 0.0f);
  }
  float *k = k_.data() + row * padded(shape_.kv_heads * head_dim),
        *v = v_.data() + row * padded(shape_.kv_heads * head_dim);
  prepare(k, shape_.kv_heads, block.k, block.k_norm);
  prepare(v, shape_.kv_heads, block.v, {});
  static thread_local std::vector<float> head;
  head.assign(width, 0.0f);
  for (int h = 0; h < shape_.kv_heads; ++h) {
    const size_t to = step.cache.head(layer, sequence.slot, h) + at * step.cache.row_bytes();
    turn(k + h * head_dim, block.k_norm, head.data());
    kernels_.keep(head.data(), width, step.cache.shape().type, step.cache.keys() + to);
    std::copy(v + h * head_dim, v + (h + 1) * head_dim, head.data());
    kernels_.keep(head.data(), width, step.cache.shape().type, step.cache.values() + to);
  }
}

void Model::attention(int layer, const Block &block, Step &step) {
  const Stopwatch watch(times_.attention);
  const int width = step.cache.width(), group = shape_.heads / shape_.kv_heads;
  sized(turned_, static_cast<size_t>(step.rows()) * shape_.heads * width);
  sized(mix_, static_cast<size_t>(step.rows()) * shape_.heads * shape_.head_dim);
  each_row(step.rows(), [&](int row) { place_heads(layer, block, step, row); });
  pool_->run(static_cast<int>(step.tiles.size()) * shape_.kv_heads, [&](int piece) {
    const Step::Tile &tile = step.tiles[piece / shape_.kv_heads];
    const Step::Sequence &sequence = step.sequences[tile.sequence];
    const int h = piece % shape_.kv_heads;
    const size_t at = step.cache.head(layer, sequence.slot, h), row = sequence.first;
    Attention task{};
    task.queries = turned_.data() + (row * shape_.kv_heads + static_cast<size_t>(h) * sequence.count) * group * width;
    task.first = tile.first;
    task.count = std::min(kQueries, sequence.count - tile.first);
    task.start = sequence.start;
    task.group = group;
    task.width = width;
    task.head_dim = shape_.head_dim;
    task.window = block.window;
    task.keys = {step.cache.keys() + at, step.cache.shape().type};
    task.values = {step.cache.values() + at, step.cache.shape().type};
    task.out_stride = static_cast<size_t>(shape_.heads) * shape_.head_dim;
    task.out = mix_.data() + row * task.out_stride + static_cast<size_t>(h) * group * shape_.head_dim;
    kernels_.attend(task);
  });
}

void Model::logits(const float *hidden, int rows, float *out) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Stopwatch watch(times_.total);
  if (!output_) throw std::invalid_argument("the model has no output matrix.");
  const Linear head{output_, {}};
  const int vocab = output_->rows(), cols = shape_.hidden;
  float *normed = sized(normed_, static_cast<size_t>(rows) * cols);
  const Roundings rounded = roundings({&head}, rows);
  rounded_.resize(rounded, rows, cols);
  each_row(rows, [&](int row) {
    float *to = normed + static_cast<size_t>(row) * cols;
    kernels_.rms_norm(hidden + static_cast<size_t>(row) * cols, output_norm_.data(), cols, shape_.norm_eps, to);
    rounded_.round(kernels_, rounded, to, rows, row);
  });
  const size_t stride = padded(vocab);
  const bool direct = stride == static_cast<size_t>(vocab);
  float *to = direct ? out : sized(gate_, rows * stride);
  const Product product{&head, to, stride};
  multiply({{normed, static_cast<size_t>(cols), rows}, cols, &rounded_}, &product, 1);
  if (direct) return;
  for (int row = 0; row < rows; ++row)
    std::copy(to + row * stride, to + row * stride + vocab, out + static_cast<size_t>(row) * vocab);
}

}  // namespace bitsmith

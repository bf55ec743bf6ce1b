#include "model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace bitsmith {
namespace {

constexpr int kMostSingle = 64;  // hidden states whose logits are computed as if each came alone

}  // namespace

Pass::Pass(const Feed &feed, Cache &cache) : cache(cache) {
  sequences.reserve(feed.rows);
  for (int i = 0; i < feed.rows; ++i) {
    const int start = static_cast<int>(feed.starts[i]), count = static_cast<int>(feed.counts[i]);
    sequences.push_back({static_cast<int>(feed.slots[i]), start, count, rows()});
    stop = std::max(stop, start + count);
    sequence_of.insert(sequence_of.end(), count, i);
  }
  single = feed.single;
  if (single >= 0) return;
  single = 0;
  while (single < feed.rows && (rows() <= kFewRows || feed.counts[single] == 1)) ++single;
}

void check_linear(const char *name, const Linear &linear, int rows, int cols) {
  const Matrix &w = *linear.weight;
  if (w.rows() == rows && w.cols() == cols && (linear.bias.empty() || static_cast<int>(linear.bias.size()) == rows))
    return;
  throw std::invalid_argument(std::string(name) + ": expected [" + std::to_string(rows) + ", " + std::to_string(cols) +
                              "], found [" + std::to_string(w.rows()) + ", " + std::to_string(w.cols()) + "].");
}

void Model::add_part(Part part) {
  part.operation->check(shape_.hidden);
  for (const auto *norm : {&part.before, &part.after})
    if (!norm->empty() && static_cast<int>(norm->size()) != shape_.hidden)
      throw std::invalid_argument("a norm has the wrong length.");
  parts_.push_back(std::move(part));
}

void Model::set_ends(std::shared_ptr<Matrix> embedding, std::vector<float> norm, std::shared_ptr<Matrix> output) {
  if (embedding->cols() != shape_.hidden || output->cols() != shape_.hidden ||
      static_cast<int>(norm.size()) != shape_.hidden)
    throw std::invalid_argument("embedding, norm or output do not match the hidden size.");
  embedding_ = std::move(embedding);
  output_norm_ = std::move(norm);
  output_ = std::move(output);
}

void Model::hidden(const Feed &feed, Cache &cache, float *out, const std::function<bool()> &go_on) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Stopwatch watch(compute_->times().total);
  if (!embedding_) throw std::invalid_argument("the model has no embedding.");
  for (const Part &part : parts_) part.operation->check(cache);
  Pass pass(feed, cache);
  const size_t hidden = shape_.hidden;
  const auto token = [&](int row) {
    const int i = pass.sequence_of[row];
    return feed.tokens[static_cast<size_t>(i) * feed.n + row - pass.sequences[i].first];
  };
  for (int row = 0; row < pass.rows(); ++row)
    if (token(row) < 0 || token(row) >= embedding_->rows()) throw std::invalid_argument("a token is out of range.");
  compute_->begin(pass.single_rows(), feed.single >= 0);
  float *x = compute_->scratch(Scratch::hidden, pass.rows() * hidden);
  compute_->each_row(pass.rows(), [&](int row) {
    embedding_->decode(compute_->kernels(), static_cast<int>(token(row)), x + row * hidden);
    scale(x + row * hidden, shape_.embedding_scale, hidden);
  });
  if (projection_.weight) add_layer_inputs(feed, pass, x);
  for (const Part &part : parts_) {
    if (pass.rows() > 1 && !go_on()) throw Interrupted{};
    run_part(part, pass, x);
  }
  for (int i = 0; i < feed.rows; ++i) {
    const Pass::Sequence &sequence = pass.sequences[i];
    const float *from = x + sequence.first * hidden;
    std::copy(from, from + sequence.count * hidden, out + static_cast<size_t>(i) * feed.n * hidden);
  }
}

// For each token and layer, (norm(projection(x) / sqrt(hidden)) + row of the table * sqrt(width)) / sqrt(2).
void Model::add_layer_inputs(const Feed &feed, Pass &pass, const float *x) {
  if (!feed.table) throw std::invalid_argument("the model needs rows of the table of layers.");
  const int rows = pass.rows(), all = projection_.weight->rows(), width = static_cast<int>(layer_norm_.size());
  const size_t hidden = shape_.hidden, stride = padded(all);
  float *to = compute_->scratch(Scratch::layers, rows * stride);
  compute_->round(x, hidden, rows, shape_.hidden, {&projection_});
  compute_->multiply(projection_, {{x, hidden, rows}}, to, stride);
  const float shrink = 1.0f / std::sqrt(static_cast<float>(hidden)), grow = std::sqrt(static_cast<float>(width));
  const float half = std::sqrt(0.5f);
  compute_->each_row(rows, [&](int row) {
    const int i = pass.sequence_of[row];
    const size_t place = static_cast<size_t>(i) * feed.n + row - pass.sequences[i].first;
    const float *table = feed.table + place * all;
    float *own = to + row * stride;
    scale(own, shrink, all);
    for (int at = 0; at < all; at += width)
      compute_->kernels().rms_norm(own + at, layer_norm_.data(), width, shape_.norm_eps, own + at);
    for (int at = 0; at < all; ++at) own[at] = (own[at] + table[at] * grow) * half;
  });
  pass.layer_inputs = to;
  pass.input_stride = stride;
}

void Model::set_layer_inputs(Linear projection, std::vector<float> norm) {
  const int rows = projection.weight->rows();
  check_linear("the projection of layers", projection, rows, shape_.hidden);
  if (norm.empty() || rows % static_cast<int>(norm.size()))
    throw std::invalid_argument("the norm of the embeddings of layers has the wrong length.");
  projection_ = std::move(projection);
  layer_norm_ = std::move(norm);
}

// x = (x + norm(operation(norm(x)))) * scale
void Model::run_part(const Part &part, Pass &pass, float *x) {
  const int rows = pass.rows(), hidden = shape_.hidden;
  const Kernels &kernels = compute_->kernels();
  const size_t stride = padded(hidden);
  float *normed = compute_->scratch(Scratch::normed, static_cast<size_t>(rows) * hidden);
  float *added = compute_->scratch(Scratch::added, rows * stride);
  RoundedBuffer &rounded = compute_->rounded();
  rounded.start(hidden);
  rounded.add(compute_->roundings(part.operation->inputs(), rows), rows);
  rounded.reserve();
  compute_->each_row(rows, [&](int row) {
    float *to = normed + static_cast<size_t>(row) * hidden;
    const float *from = x + static_cast<size_t>(row) * hidden;
    if (part.before.empty())
      std::copy(from, from + hidden, to);
    else
      kernels.rms_norm(from, part.before.data(), hidden, shape_.norm_eps, to);
    rounded.round(kernels, 0, row, to);
  });
  part.operation->run(*compute_, pass, {normed, static_cast<size_t>(hidden), rows}, added, stride);
  compute_->each_row(rows, [&](int row) {
    float *own = added + row * stride;
    if (!part.after.empty()) kernels.rms_norm(own, part.after.data(), hidden, shape_.norm_eps, own);
    scale(own, shape_.residual_scale, hidden);
    float *to = x + static_cast<size_t>(row) * hidden;
    add(to, own, hidden);
    scale(to, part.scale, hidden);
  });
}

void Model::logits(const float *hidden, int rows, float *out) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Stopwatch watch(compute_->times().total);
  if (!output_) throw std::invalid_argument("the model has no output matrix.");
  const Linear head{output_, {}};
  const int vocab = output_->rows(), cols = shape_.hidden;
  float *normed = compute_->scratch(Scratch::normed, static_cast<size_t>(rows) * cols);
  compute_->each_row(rows, [&](int row) {
    compute_->kernels().rms_norm(hidden + static_cast<size_t>(row) * cols, output_norm_.data(), cols, shape_.norm_eps,
                                 normed + static_cast<size_t>(row) * cols);
  });
  compute_->begin(rows <= kMostSingle ? rows : 0, false);
  compute_->round(normed, cols, rows, cols, {&head});
  const size_t stride = padded(vocab);
  const bool direct = stride == static_cast<size_t>(vocab);
  float *to = direct ? out : compute_->scratch(Scratch::gate, rows * stride);
  compute_->multiply(head, {{normed, static_cast<size_t>(cols), rows}}, to, stride);
  if (direct) return;
  for (int row = 0; row < rows; ++row)
    std::copy(to + row * stride, to + row * stride + vocab, out + static_cast<size_t>(row) * vocab);
}

}  // namespace bitsmith

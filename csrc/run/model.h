// A decoder on packed weights: all parts of a forward pass in one call (bitsmith/runtime/decoder.py is its reference).
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "operation.h"

namespace bitsmith {

struct Interrupted {};

struct ModelShape {
  int hidden;
  float norm_eps;
  float embedding_scale, residual_scale;
};

class Model {
 public:
  Model(const ModelShape &shape, std::unique_ptr<Compute> compute) : shape_(shape), compute_(std::move(compute)) {}

  // All throw std::invalid_argument where sizes do not match.
  void add_part(Part part);
  void set_ends(std::shared_ptr<Matrix> embedding, std::vector<float> norm, std::shared_ptr<Matrix> output);
  // What the embeddings of layers are made of beside a table: a projection [layers * width, hidden] and norm [width].
  void set_layer_inputs(Linear projection, std::vector<float> norm);

  // Hidden states after the last part, out [rows, n, hidden]; filler's are left as they are.
  // `go_on` is asked before each part of more than one token; where it says no, Interrupted is thrown. Throws
  // std::invalid_argument where the cache does not fit, or a token is out of range.
  void hidden(const Feed &feed, Cache &cache, float *out, const std::function<bool()> &go_on);

  // Logits of some hidden states: out [rows, vocab].
  void logits(const float *hidden, int rows, float *out);

  Compute &compute() { return *compute_; }
  const ModelShape &shape() const { return shape_; }
  bool complete() const { return output_ != nullptr; }
  const Matrix &output() const { return *output_; }
  int layer_inputs() const { return projection_.weight ? projection_.weight->rows() : 0; }

 private:
  void add_layer_inputs(const Feed &feed, Pass &pass, const float *x);
  void run_part(const Part &part, Pass &pass, float *x);

  ModelShape shape_;
  std::unique_ptr<Compute> compute_;
  std::vector<Part> parts_;
  std::shared_ptr<Matrix> embedding_, output_;
  std::vector<float> output_norm_;
  Linear projection_;
  std::vector<float> layer_norm_;
  std::mutex mutex_;
};

}  // namespace bitsmith

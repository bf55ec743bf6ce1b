// The gated delta net: attention whose memory is one matrix a head, which forgets and is corrected by each token.
#pragma once

#include "operation.h"

namespace bitsmith {

struct DeltaShape {
  int layer;  // of the cache
  int key_heads, value_heads, key_dim, value_dim, taps;
  bool tiled;   // value head i belongs to key head i % key_heads, else to i / (value_heads / key_heads)
  bool paired;  // rates and paces are one matrix: for each key head the rates of its value heads, then their paces
  float norm_eps;

  int keys() const { return key_heads * key_dim; }
  int values() const { return value_heads * value_dim; }
  int mixed() const { return 2 * keys() + values(); }
  // Numbers that a slot of the cache keeps: the matrices, then the last inputs of the convolution.
  size_t matrices() const { return static_cast<size_t>(value_heads) * key_dim * value_dim; }
  size_t state() const { return matrices() + static_cast<size_t>(taps - 1) * mixed(); }
};

class DeltaNet : public Operation {
 public:
  // gates: the matrices of rates and of paces, or one of both
  // taps: [mixed, taps]; paces: factor of the logarithm of the decay, and what is added to paces; norm: [value_dim]
  // Throws std::invalid_argument where sizes do not match.
  DeltaNet(const DeltaShape &shape, Linear mixed, Linear z, std::vector<Linear> gates, Linear output,
           std::vector<float> taps, std::vector<float> factors, std::vector<float> shifts, std::vector<float> norm);

  void check(int hidden) const override;
  void check(const Cache &cache) const override;
  std::vector<const Linear *> inputs() const override;
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  struct Buffers;  // of one run

  void prepare(const Kernels &kernels, Pass &pass, const Buffers &to, int row) const;
  void remember(Pass &pass, const Buffers &from) const;
  void recur(Compute &compute, Pass &pass, const Buffers &to) const;

  DeltaShape shape_;
  Linear mixed_, z_, output_;
  std::vector<Linear> gates_;
  std::vector<float> taps_;  // [taps, mixed]
  std::vector<float> factors_, shifts_, norm_;
  std::vector<float> query_unit_, key_unit_;  // weights of a norm that gives q / sqrt(key_dim) and k of length 1
};

}  // namespace bitsmith

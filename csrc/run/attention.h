// Softmax attention with grouped heads, and what families vary about it.
#pragma once

#include "operation.h"

namespace bitsmith {

struct AttentionShape {
  int layer;  // of the cache
  int heads, kv_heads, head_dim;
  float norm_eps;
  int window;         // 0: all earlier keys
  int rotation;       // number of the cache's rotation; -1 for none
  bool interleaved;   // rotated pairs are (2 i, 2 i + 1), else (i, i + dim / 2)
  bool whole_norms;   // q and k are normed over all heads
  bool late_norms;    // q and k are normed after their rotation
  float query_scale;  // beside 1 / sqrt(head_dim)
  float temperature;  // queries at position p are multiplied by 1 + temperature ln(1 + p / temperature_length)
  int temperature_length;
};

class SelfAttention : public Operation {
 public:
  // q_norm, k_norm: may be empty. Throws std::invalid_argument where sizes do not match.
  SelfAttention(const AttentionShape &shape, Linear q, Linear k, Linear v, Linear output, std::vector<float> q_norm,
                std::vector<float> k_norm);

  void check(int hidden) const override;
  void check(const Cache &cache) const override;
  std::vector<const Linear *> inputs() const override { return {&q_, &k_, &v_}; }
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  struct Heads;  // the buffers of one run

  void place(const Kernels &kernels, Pass &pass, const Heads &heads, int row) const;
  void attend(Compute &compute, Pass &pass, const Heads &heads) const;

  AttentionShape shape_;
  Linear q_, k_, v_, output_;
  std::vector<float> q_norm_, k_norm_;
};

}  // namespace bitsmith

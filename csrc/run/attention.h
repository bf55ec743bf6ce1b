// Softmax attention with grouped heads, and what families vary about it.
#pragma once

#include "operation.h"

namespace bitsmith {

struct AttentionShape {
  int layer;  // of the cache; of an earlier layer if it has no keys and values of its own
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
  float softcap;     // c tanh(score / c) is taken of scores; 0 for none
  bool value_norms;  // values are normed, without a weight
  bool gated;        // behind each head of q stands a gate of its output
};

class SelfAttention : public Operation {
 public:
  // Without k, it uses the keys and values of an earlier layer; without v, its keys before norm and rotation are the
  // values. sinks: [heads] or empty. Throws std::invalid_argument where sizes do not match.
  SelfAttention(const AttentionShape &shape, Linear q, Linear k, Linear v, Linear output, std::vector<float> q_norm,
                std::vector<float> k_norm, std::vector<float> sinks);

  void check(int hidden) const override;
  void check(const Cache &cache) const override;
  std::vector<const Linear *> inputs() const override;
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  struct Heads;  // the buffers of one run

  void place_queries(const Kernels &kernels, Pass &pass, const Heads &heads, int row) const;
  void place_keys(const Kernels &kernels, Pass &pass, const Heads &heads, int row) const;
  void prepare(const Kernels &kernels, float *rows, int count, int step, const Linear &linear,
               const std::vector<float> &norm) const;
  void turn(const Kernels &kernels, const Pass &pass, int at, const float *from, const std::vector<float> &norm,
            float *to) const;
  void attend(Compute &compute, Pass &pass, const Heads &heads) const;

  AttentionShape shape_;
  Linear q_, k_, v_, output_;
  std::vector<float> q_norm_, k_norm_, sinks_, ones_;
};

}  // namespace bitsmith

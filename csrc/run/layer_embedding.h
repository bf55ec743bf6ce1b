// An embedding of each layer, added behind the MLP: proj(act(gate(x)) * embedding) (Gemma 4).
#pragma once

#include "gate.h"
#include "operation.h"

namespace bitsmith {

class LayerEmbedding : public Operation {
 public:
  LayerEmbedding(Activation activation, int layer, Linear gate, Linear projection);

  void check(int hidden) const override;
  std::vector<const Linear *> inputs() const override { return {&gate_}; }
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  Activation activation_;
  int layer_;
  Linear gate_, projection_;
};

}  // namespace bitsmith

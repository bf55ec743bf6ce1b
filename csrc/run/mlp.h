// The gated MLP: down(act(gate(x)) * up(x)).
#pragma once

#include "gate.h"
#include "operation.h"

namespace bitsmith {

class Mlp : public Operation {
 public:
  Mlp(Activation activation, Linear gate, Linear up, Linear down);

  void check(int hidden) const override;
  std::vector<const Linear *> inputs() const override { return {&gate_, &up_}; }
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  Activation activation_;
  Linear gate_, up_, down_;
};

}  // namespace bitsmith

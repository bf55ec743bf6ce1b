// A gated MLP and a mixture of experts side by side, each with its norms; the router reads none of them (Gemma 4).
#pragma once

#include <memory>
#include <vector>

#include "experts.h"
#include "mlp.h"

namespace bitsmith {

class ExpertsBesideMlp : public Operation {
 public:
  struct Norms {  // weights [hidden] each
    std::vector<float> before_mlp, after_mlp, before_experts, after_experts;
    float eps;
  };

  ExpertsBesideMlp(std::shared_ptr<Mlp> mlp, std::shared_ptr<Experts> experts, Norms norms);

  void check(int hidden) const override;
  std::vector<const Linear *> inputs() const override { return {}; }  // both norm and round their own
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  Rows normed(Compute &compute, const Rows &x, const std::vector<float> &norm,
              const std::vector<const Linear *> &linears) const;

  std::shared_ptr<Mlp> mlp_;
  std::shared_ptr<Experts> experts_;
  Norms norms_;
};

}  // namespace bitsmith

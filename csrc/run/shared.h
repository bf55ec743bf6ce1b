// A mixture of experts beside an MLP that every token passes, weighed by a gate of its own.
#pragma once

#include <memory>

#include "experts.h"
#include "mlp.h"

namespace bitsmith {

class SharedExpert : public Operation {
 public:
  // gate: [1, hidden]
  SharedExpert(std::shared_ptr<Experts> experts, std::shared_ptr<Mlp> shared, Linear gate);

  void check(int hidden) const override;
  std::vector<const Linear *> inputs() const override;
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  std::shared_ptr<Experts> experts_;
  std::shared_ptr<Mlp> shared_;
  Linear gate_;
};

}  // namespace bitsmith

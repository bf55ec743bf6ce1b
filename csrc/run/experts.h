// A mixture of experts: a router chooses for each token the gated MLPs that it passes, and weighs their outputs.
#pragma once

#include "gate.h"
#include "operation.h"

namespace bitsmith {

struct Routing {
  int used;        // experts that a token passes
  bool chosen;     // the softmax runs over the chosen experts, else over all
  bool normalize;  // weights are divided by their sum
};

class Experts : public Operation {
 public:
  // gates, ups, downs: one of each expert
  Experts(Activation activation, const Routing &routing, Linear router, std::vector<Linear> gates,
          std::vector<Linear> ups, std::vector<Linear> downs);

  void check(int hidden) const override;
  std::vector<const Linear *> inputs() const override { return {}; }  // rows are gathered and rounded by expert
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;

 private:
  struct Routes;

  void route(Compute &compute, const Rows &x, Routes &routes) const;
  void first_products(Compute &compute, const Rows &x, const Routes &routes, float *gate, float *up) const;
  void second_product(Compute &compute, const Routes &routes, float *gate, float *up, float *down) const;

  Activation activation_;
  Routing routing_;
  Linear router_;
  std::vector<Linear> gates_, ups_, downs_;
};

}  // namespace bitsmith

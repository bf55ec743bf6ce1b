// A mixture of experts: a router chooses for each token the gated MLPs that it passes, and weighs their outputs.
#pragma once

#include "gate.h"
#include "operation.h"
#include "residency.h"

namespace bitsmith {

struct Routing {
  int used;        // experts that a token passes
  bool chosen;     // the softmax runs over the chosen experts, else over all
  bool normalize;  // weights are divided by their sum
};

// Scores the experts. norm: weights of a norm of its input; empty without. scales: multiplier of each expert's output;
// empty without.
struct Router {
  Linear linear;
  std::vector<float> norm;
  float norm_eps;
  std::vector<float> scales;
};

class Experts : public Operation {
 public:
  // gates, ups, downs: one of each expert
  // residency: keeps those of them that are fetched on demand; null if all lie in memory
  Experts(Activation activation, const Routing &routing, Router router, std::vector<Linear> gates,
          std::vector<Linear> ups, std::vector<Linear> downs, std::shared_ptr<Residency> residency);

  void check(int hidden) const override;
  std::vector<const Linear *> inputs() const override { return {}; }  // rows are gathered and rounded by expert
  void run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const override;
  // scored: what the router reads, x: what the experts read, [rows, hidden] each. out: [rows, stride]
  void mix(Compute &compute, const Rows &scored, const Rows &x, float *out, size_t stride) const;

 private:
  struct Routes;
  struct Buffers;

  struct Slice {  // of the experts that some token uses
    size_t first, end;
  };

  Rows normed(Compute &compute, const Rows &x) const;
  Routes route(Compute &compute, const Rows &x) const;
  Slice fetched(Compute &compute, const Routes &routes, size_t first) const;
  void first_products(Compute &compute, const Rows &x, const Routes &routes, Slice slice, const Buffers &to) const;
  void second_product(Compute &compute, const Routes &routes, Slice slice, const Buffers &to) const;

  Activation activation_;
  Routing routing_;
  Router router_;
  std::vector<Linear> gates_, ups_, downs_;
  std::shared_ptr<Residency> residency_;
};

}  // namespace bitsmith

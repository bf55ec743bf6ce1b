#include "shared.h"

#include <cmath>
#include <utility>

namespace bitsmith {

SharedExpert::SharedExpert(std::shared_ptr<Experts> experts, std::shared_ptr<Mlp> shared, Linear gate)
    : experts_(std::move(experts)), shared_(std::move(shared)), gate_(std::move(gate)) {}

void SharedExpert::check(int hidden) const {
  experts_->check(hidden);
  shared_->check(hidden);
  check_linear("gate of the shared expert", gate_, 1, hidden);
}

std::vector<const Linear *> SharedExpert::inputs() const {
  std::vector<const Linear *> found = shared_->inputs();
  found.push_back(&gate_);
  return found;
}

void SharedExpert::run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const {
  const size_t own = padded(1);
  float *gates = compute.scratch(Scratch::scores, x.count * own);
  compute.multiply(gate_, {x}, gates, own);
  std::vector<float> shares(x.count);
  for (int row = 0; row < x.count; ++row) shares[row] = 1.0f / (1.0f + std::exp(-gates[row * own]));
  float *beside = compute.scratch(Scratch::beside, x.count * stride);
  shared_->run(compute, pass, x, beside, stride);
  experts_->run(compute, pass, x, out, stride);  // which rounds its own inputs
  const int hidden = gate_.weight->cols();
  compute.each_row(x.count, [&](int row) {
    const float *from = beside + row * stride;
    float *to = out + row * stride;
    for (int i = 0; i < hidden; ++i) to[i] += shares[row] * from[i];
  });
}

}  // namespace bitsmith

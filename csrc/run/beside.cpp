#include "beside.h"

#include <stdexcept>
#include <utility>

namespace bitsmith {

ExpertsBesideMlp::ExpertsBesideMlp(std::shared_ptr<Mlp> mlp, std::shared_ptr<Experts> experts, Norms norms)
    : mlp_(std::move(mlp)), experts_(std::move(experts)), norms_(std::move(norms)) {}

void ExpertsBesideMlp::check(int hidden) const {
  mlp_->check(hidden);
  experts_->check(hidden);
  for (const auto *norm : {&norms_.before_mlp, &norms_.after_mlp, &norms_.before_experts, &norms_.after_experts})
    if (static_cast<int>(norm->size()) != hidden) throw std::invalid_argument("a norm has the wrong length.");
}

// x normed, and rounded for linears as group 0.
Rows ExpertsBesideMlp::normed(Compute &compute, const Rows &x, const std::vector<float> &norm,
                              const std::vector<const Linear *> &linears) const {
  const int hidden = static_cast<int>(norm.size());
  float *to = compute.scratch(Scratch::inner, static_cast<size_t>(x.count) * hidden);
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(hidden);
  rounded.add(compute.roundings(linears, x.count), x.count);
  rounded.reserve();
  compute.each_row(x.count, [&](int row) {
    float *own = to + static_cast<size_t>(row) * hidden;
    compute.kernels().rms_norm(x.data + row * x.stride, norm.data(), hidden, norms_.eps, own);
    rounded.round(compute.kernels(), 0, row, own);
  });
  return {to, static_cast<size_t>(hidden), x.count};
}

void ExpertsBesideMlp::run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const {
  float *beside = compute.scratch(Scratch::beside, x.count * stride);
  mlp_->run(compute, pass, normed(compute, x, norms_.before_mlp, mlp_->inputs()), beside, stride);
  experts_->mix(compute, x, normed(compute, x, norms_.before_experts, {}), out, stride);
  const int hidden = static_cast<int>(norms_.after_mlp.size());
  compute.each_row(x.count, [&](int row) {
    float *own = beside + row * stride, *to = out + row * stride;
    compute.kernels().rms_norm(own, norms_.after_mlp.data(), hidden, norms_.eps, own);
    compute.kernels().rms_norm(to, norms_.after_experts.data(), hidden, norms_.eps, to);
    add(to, own, hidden);
  });
}

}  // namespace bitsmith

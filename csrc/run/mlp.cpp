#include "mlp.h"

#include <utility>

namespace bitsmith {

Mlp::Mlp(Activation activation, Linear gate, Linear up, Linear down)
    : activation_(activation), gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)) {}

void Mlp::check(int hidden) const {
  const int width = gate_.weight->rows();
  check_linear("gate", gate_, width, hidden);
  check_linear("up", up_, width, hidden);
  check_linear("down", down_, hidden, width);
}

void Mlp::run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const {
  const int rows = pass.rows(), width = gate_.weight->rows();
  const size_t inner = padded(width);
  float *gate = compute.scratch(Scratch::gate, rows * inner), *up = compute.scratch(Scratch::up, rows * inner);
  const Product both[2] = {{&gate_, {x}, gate, inner}, {&up_, {x}, up, inner}};
  compute.multiply(both, 2);
  const auto bias = [](const Linear &linear) { return linear.bias.empty() ? nullptr : linear.bias.data(); };
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(width);
  rounded.add(compute.roundings({&down_}, rows), rows);
  rounded.reserve();
  compute.each_row(rows, [&](int row) {
    float *own = gate + row * inner;
    gated(compute.kernels(), activation_, own, bias(gate_), up + row * inner, bias(up_), width);
    rounded.round(compute.kernels(), 0, row, own);
  });
  compute.multiply(down_, {{gate, inner, rows}}, out, stride);
}

}  // namespace bitsmith

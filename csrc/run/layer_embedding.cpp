#include "layer_embedding.h"

#include <stdexcept>
#include <utility>

namespace bitsmith {

LayerEmbedding::LayerEmbedding(Activation activation, int layer, Linear gate, Linear projection)
    : activation_(activation), layer_(layer), gate_(std::move(gate)), projection_(std::move(projection)) {}

void LayerEmbedding::check(int hidden) const {
  const int width = gate_.weight->rows();
  check_linear("gate of a layer's embedding", gate_, width, hidden);
  check_linear("projection of a layer's embedding", projection_, hidden, width);
}

void LayerEmbedding::run(Compute &compute, Pass &pass, const Rows &x, float *out, size_t stride) const {
  const int rows = pass.rows(), width = gate_.weight->rows();
  const size_t inner = padded(width), from = static_cast<size_t>(layer_) * width;
  if (!pass.layer_inputs || from + width > pass.input_stride)
    throw std::invalid_argument("the model has no embedding of this layer.");
  float *gate = compute.scratch(Scratch::gate, rows * inner);
  compute.multiply(gate_, {x}, gate, inner);
  RoundedBuffer &rounded = compute.rounded();
  rounded.start(width);
  rounded.add(compute.roundings({&projection_}, rows), rows);
  rounded.reserve();
  compute.each_row(rows, [&](int row) {
    float *own = gate + row * inner, *input = pass.layer_inputs + row * pass.input_stride + from;
    gated(compute.kernels(), activation_, own, nullptr, input, nullptr, width);
    rounded.round(compute.kernels(), 0, row, own);
  });
  compute.multiply(projection_, {{gate, inner, rows}}, out, stride);
}

}  // namespace bitsmith

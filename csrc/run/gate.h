// The activations of gated MLPs.
#pragma once

#include "compute.h"

namespace bitsmith {

enum class Activation {
  silu,
  gelu,     // the tanh form
  clamped,  // gpt-oss: min(g, 7) sigmoid(1.702 g) (clamp(u, -7, 7) + 1)
};

// gate = activation(gate) * up, after their biases (null for none)
inline void gated(const Kernels &kernels, Activation activation, float *gate, const float *gate_bias, float *up,
                  const float *up_bias, int n) {
  if (gate_bias) add(gate, gate_bias, n);
  if (up_bias) add(up, up_bias, n);
  switch (activation) {
    case Activation::silu: return kernels.swiglu(gate, up, n);
    case Activation::gelu: return kernels.geglu(gate, up, n);
    case Activation::clamped: return kernels.clamped_swiglu(gate, up, n);
  }
}

}  // namespace bitsmith

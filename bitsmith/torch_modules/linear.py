"""The linear layer whose weights are quantized."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsmith.torch_modules.stored_weight import StoredWeight


class QuantLinear(nn.Linear):
    """y = x W^T + b with W stored as codes; takes the place of `nn.Linear` and of transformers' `Conv1D`.

    weight: a `StoredWeight` [out_features, in_features]; it has a shape, a dtype and a device, and is no tensor, so
        that code which would change it in place fails
    bias: as it was, or None
    precision: see `operations.matmul`

    Gradients flow to the input and the bias, not to the weight.
    """

    _is_hf_initialized = True

    def __init__(self, weight: StoredWeight, bias: nn.Parameter | None = None, precision: str = "auto") -> None:
        """Takes both as they are."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = weight  # type: ignore[assignment]
        self.register_parameter("bias", bias)
        self.precision = precision

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the input's dtype."""
        weight: StoredWeight = self._modules["weight"]  # type: ignore[assignment]
        if input.shape[-1] != self.in_features:
            raise ValueError(f"the layer takes {self.in_features} features, found {input.shape[-1]} in the input.")
        out = weight.multiply(input, precision=self.precision)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def reset_parameters(self) -> None:
        """Nothing: codes are not drawn at random."""

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def dense_linear(layer: QuantLinear, dtype: torch.dtype | None = None) -> nn.Linear:
    """The layer with its weights decoded, as an ordinary one."""
    weight: StoredWeight = layer._modules["weight"]  # type: ignore[assignment]
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.weight = nn.Parameter(weight.dense(dtype))
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone())
    return made

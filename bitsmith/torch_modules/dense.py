"""Back to ordinary layers: `bitsmith.torch.dequantize_module`."""

from __future__ import annotations

import torch
from torch import nn

from bitsmith.torch_modules.experts import QuantExperts
from bitsmith.torch_modules.linear import QuantLinear, dense_linear


def dequantize_module(model: nn.Module, *, dtype: torch.dtype | None = None) -> None:
    """Replace quantized layers by ordinary ones with the decoded weights, in place.

    dtype: of the weights; None for that of the weights that were quantized
    Transformers' `Conv1D` comes back as `nn.Linear`, and fused experts as they were.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):
        parent, _, own = name.rpartition(".")
        if isinstance(module, QuantLinear):
            model.get_submodule(parent)._modules[own] = dense_linear(module, dtype)
        elif isinstance(module, QuantExperts):
            model.get_submodule(parent)._modules[own] = module.dense(dtype)

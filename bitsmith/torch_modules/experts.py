"""Experts of transformers that are one parameter for all, with that parameter quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.errors import UnsupportedError
from bitsmith.torch_modules.stored_weight import StoredWeight

_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
_SAYS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_apply_gate")


def expert_weights(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of fused experts, [experts, rows, cols] or transposed; () for another module.

    These are modules that transformers' `use_experts_implementation` describes: how they are laid out is said by
    attributes.
    """
    if not all(hasattr(module, name) for name in _SAYS):
        return ()
    names = tuple(name for name in _WEIGHTS if name in module._parameters)
    found = [module._parameters[name] for name in names]
    fits = len(names) == 2 and names[1] == "down_proj" and all(p is not None and p.ndim == 3 for p in found)
    return names if fits else ()


class QuantExperts(nn.Module):
    """Fused experts whose weights are codes; their other parameters, activation and gate are the original's.

    A stack of weights is a `StoredWeight` [experts, rows, cols] with the original's name; transposed ones (gpt-oss) are
    stored the other way round.
    """

    def __init__(self, original: nn.Module, weights: dict[str, StoredWeight], precision: str = "auto") -> None:
        """weights: by the names of `expert_weights`. Takes the original's other parts, and its weights from it."""
        super().__init__()
        for name in weights:
            del original._parameters[name]
        for name, parameter in original._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in original._buffers.items():
            self.register_buffer(name, buffer)
        for name, child in original._modules.items():
            self.add_module(name, child)
        for name, weight in weights.items():
            self.add_module(name, weight)
        self.up = next(name for name in weights if name != "down_proj")
        self.precision = precision
        self.num_experts = weights["down_proj"].shape[0]
        self.__dict__["original"] = original  # beside the modules: its parameters are registered here

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, hidden], the experts of each token and their weights, [tokens, used] each -> [tokens, hidden]."""
        original: Any = self.__dict__["original"]
        if getattr(original, "_is_expert_parallel", False):
            raise UnsupportedError("quantized experts do not run in expert parallel; load the model on one device.")
        used = top_k_index.shape[-1]
        ids = top_k_index.reshape(-1)
        order = torch.argsort(ids, stable=True)
        sorted_ids = ids[order]
        counts = torch.bincount(ids, minlength=self.num_experts)
        rows = hidden_states[order // used]
        up = self._product(self.up, rows, counts, sorted_ids)
        gated = original._apply_gate(up) if original.has_gate else original.act_fn(up)
        down = self._product("down_proj", gated, counts, sorted_ids)
        if original.has_post_expert_norm:
            down = original.post_expert_norm(down)
        weighted = down * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0], device=order.device)
        mixed = weighted[back].reshape(hidden_states.shape[0], used, -1).sum(dim=1)
        return mixed.to(hidden_states.dtype)

    def _product(self, name: str, rows: Tensor, counts: Tensor, ids: Tensor) -> Tensor:
        """Rows sorted by expert times the matrix of each."""
        weight: StoredWeight = self._modules[name]  # type: ignore[assignment]
        out = weight.multiply_each(rows, counts, precision=self.precision)
        bias = self._parameters.get(f"{name}_bias")
        return out if bias is None else out + bias[ids].to(out.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The original module with the decoded weights. It shares its other parameters with this one."""
        original: nn.Module = self.__dict__["original"]
        for name in (self.up, "down_proj"):
            weight: StoredWeight = self._modules[name]  # type: ignore[assignment]
            values = weight.dense(dtype)
            values = values.transpose(-1, -2).contiguous() if original.is_transposed else values
            original.register_parameter(name, nn.Parameter(values))
        for name, parameter in self._parameters.items():
            original._parameters[name] = parameter
        return original

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"{type(self.__dict__['original']).__name__}, experts={self.num_experts}"

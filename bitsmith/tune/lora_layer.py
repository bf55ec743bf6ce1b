"""PEFT's LoRA layer for our packed linear. Importing this module needs peft."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from bitsmith.errors import UnsupportedError
from bitsmith.torch_modules.linear import QuantLinear
from bitsmith.torch_modules.stored_weight import StoredWeight

MERGING_REFUSED = (
    "an adapter cannot be merged into quantized weights: rounding the sum again to so few bits loses most of what was "
    "learned. Merge it into the 16-bit original: `bitsmith merge BASE ADAPTER --to q4_k_m`."
)


class QuantLoraLinear(LoraLinear):  # type: ignore[misc]
    """y = W x + scale * B(A x) with W stored as codes (Hu et al. 2021; over 4 bits: Dettmers et al. 2023, QLoRA)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., inputs] -> [..., outputs] in x's dtype. A single adapter without dropout is one step of autograd."""
        name = self._alone() if not args and not kwargs else None
        if name is None:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        layer: QuantLinear = self.base_layer
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        weight, scale = layer._modules["weight"], self.scaling[name]
        y: Tensor = _Adapted.apply(x, down, up, scale, weight, layer.precision)  # type: ignore[no-untyped-call]
        return y if layer.bias is None else y + layer.bias.to(y.dtype)

    def _alone(self) -> str | None:
        """The adapter, where it is the only one and nothing else is asked for."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        if torch.compiler.is_compiling():
            return None
        name: str = active[0]
        dropout = self.lora_dropout[name]
        plain = isinstance(dropout, torch.nn.Identity) or not self.training
        bias = self.lora_A[name].bias is not None or self.lora_B[name].bias is not None
        return name if plain and not bias else None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises UnsupportedError: codes cannot take an adapter in."""
        raise UnsupportedError(MERGING_REFUSED)

    def unmerge(self) -> None:
        """Nothing was merged."""

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """scale * B A, float32 [outputs, inputs]."""
        up, down = self.lora_B[adapter].weight, self.lora_A[adapter].weight
        delta: torch.Tensor = self.scaling[adapter] * (up.float() @ down.float())
        return delta


class _Adapted(torch.autograd.Function):
    """W x + scale * B(A x). Products have x's dtype; A and B are rounded to it, and keep the dtype that they have.

    Kept for the backward pass are x as it came and A x, and no float32 copy of either.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, weight: StoredWeight, precision: str
    ) -> Tensor:
        """x [..., inputs], down [rank, inputs], up [outputs, rank] -> [..., outputs]."""
        flat = x.reshape(-1, x.shape[-1])
        y = weight.training_product(flat, precision=precision)
        inner = flat @ down.to(x.dtype).T
        y.addmm_(inner, up.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(flat, inner, down, up)
        ctx.scale, ctx.weight, ctx.precision, ctx.shape = scale, weight, precision, x.shape
        return y.reshape(*x.shape[:-1], len(up))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, A and B."""
        flat, inner, down, up = ctx.saved_tensors
        grad = above[0].reshape(-1, len(up))
        inward = grad @ up.to(grad.dtype)
        inward *= ctx.scale
        of_x = of_down = of_up = None
        if ctx.needs_input_grad[0]:
            of_x = ctx.weight.input_gradient(grad.contiguous(), precision=ctx.precision)
            of_x.addmm_(inward, down.to(grad.dtype))
            of_x = of_x.reshape(ctx.shape)
        if ctx.needs_input_grad[1]:
            of_down = (inward.T @ flat).to(down.dtype)
        if ctx.needs_input_grad[2]:
            of_up = (grad.T @ inner).to(up.dtype).mul_(ctx.scale)
        return of_x, of_down, of_up, None, None, None


def register(config: Any) -> None:
    """Tell a `peft.LoraConfig` which layer adapts a packed linear."""
    config._register_custom_module({QuantLinear: QuantLoraLinear})

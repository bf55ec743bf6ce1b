"""The packed linear with an adapter: its product, and its gradients against differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="peft is not installed: pip install 'bitsmith[tune]'")
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import bitsmith.torch
from bitsmith.tune.lora_layer import QuantLoraLinear, register


class One(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x)  # type: ignore[no-any-return]


@pytest.fixture
def adapted() -> Any:
    torch.manual_seed(0)
    model = One()
    bitsmith.torch.quantize_module(model, "nf4", keep=[], compute_dtype="float32")
    model.requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["up"])
    register(config)
    layer: Any = get_peft_model(model, config).base_model.model.up
    assert isinstance(layer, QuantLoraLinear)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    return layer


def test_the_product(adapted: Any) -> None:
    x = torch.randn(5, 64)
    dense = adapted.base_layer.weight.dense(torch.float32)
    expected = x @ (dense + adapted.get_delta_weight("default")).T + adapted.base_layer.bias
    torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-4)


def test_gradients(adapted: Any) -> None:
    x = torch.randn(3, 64, requires_grad=True)
    assert torch.autograd.gradcheck(adapted, (x,), eps=0.1, atol=1e-2, rtol=1e-2, nondet_tol=1e-4)
    for half in (adapted.lora_A["default"].weight, adapted.lora_B["default"].weight):

        def product(values: Tensor, half: Tensor = half) -> Tensor:
            name = "lora_A" if half is adapted.lora_A["default"].weight else "lora_B"
            found = torch.func.functional_call(adapted, {f"{name}.default.weight": values}, (x.detach(),))
            return found  # type: ignore[no-any-return]

        values = half.detach().clone().requires_grad_(True)
        assert torch.autograd.gradcheck(product, (values,), eps=0.1, atol=1e-2, rtol=1e-2, nondet_tol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_step_of_autograd_is_what_peft_computes(adapted: Any, dtype: str) -> None:
    """Against peft's own layer over the same packed linear: output, and all three gradients."""
    torch.manual_seed(1)
    x, up = torch.randn(160, 64).to(getattr(torch, dtype)), torch.randn(160, 48).to(getattr(torch, dtype))
    halves = [adapted.lora_A["default"].weight, adapted.lora_B["default"].weight]
    found = []
    for forward in (adapted.forward, super(QuantLoraLinear, adapted).forward):
        given = x.clone().requires_grad_(True)
        out = forward(given)
        assert out.dtype == x.dtype
        found.append([out, *torch.autograd.grad(out, [given, *halves], up)])
    size = 2e-2 if dtype == "bfloat16" else 1e-5
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).detach().float().norm()) <= size * float(theirs.detach().float().norm())


def test_what_one_step_does_not_know_goes_through_peft(adapted: Any) -> None:
    x = torch.randn(5, 64)
    whole = adapted(x)
    adapted.train()
    adapted.lora_dropout["default"] = nn.Dropout(0.5)
    assert not torch.equal(adapted(x), whole)
    adapted.eval()
    torch.testing.assert_close(adapted(x), whole)
    adapted.enable_adapters(False)
    torch.testing.assert_close(adapted(x), adapted.base_layer(x))

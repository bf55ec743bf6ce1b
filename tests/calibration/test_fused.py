"""Learned rounding in the core: the values and gradients of the torch operations that define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitsmith.calibration import trainable
from bitsmith.calibration.fused import Fused
from bitsmith.system.core import core

MODULE = core()
ISAS = () if MODULE is None else tuple(MODULE.isas())
GRIDS = {  # levels, weights of a block, whether blocks have an offset
    "int2": ((-2.0, -1.0, 0.0, 1.0), 64, False),
    "int4": (tuple(float(level) for level in range(-8, 8)), 32, False),
    "q2_k": ((0.0, 1.0, 2.0, 3.0), 16, True),
}


def case(name: str, seed: int = 0) -> tuple[Tensor, ...]:
    """weight, offsets, scale, base (or None) and table, with zero and negative scales, ties, weights far outside."""
    levels, block, shifted = GRIDS[name]
    generator = torch.Generator().manual_seed(seed)
    rows, cols = 70, 4 * block
    scale = torch.randn(rows, 4, generator=generator) * 0.1
    scale[3, 1] = 0.0
    weight = torch.randn(rows, cols, generator=generator) * 0.3
    weight[1] = (torch.arange(cols) % 9 - 4).float() * 0.5 * scale[1].repeat_interleave(block)  # between two levels
    weight[2] *= 1e6
    offsets = torch.randn(rows, cols, generator=generator)
    offsets[1] = 0.0
    base: Any = torch.randn(rows, 4, generator=generator) * 0.1 if shifted else None
    if base is not None:
        base[1] = 0.0
    return weight, offsets, scale, base, torch.tensor(levels)


def by_torch(given: tuple[Tensor, ...], gradient: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, ...]:
    """Values and gradients without the core."""
    weight, offsets, scale, base, table = given
    learned = [each.clone().requires_grad_(True) for each in (offsets, scale, base) if each is not None]
    with monkeypatch.context() as patch:
        patch.setattr(trainable.Fused, "of", lambda *given: None)
        values = trainable._Decoded.apply(weight, *learned, *([] if base is not None else [None]), table)
    torch.autograd.backward(values, gradient)
    return values.detach(), *(each.grad for each in learned if each.grad is not None)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", GRIDS)
def test_the_core_gives_the_values_and_gradients_of_torch(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(name)
    gradient = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1))
    fused = Fused.of(*given, isa)
    assert fused is not None
    values, *gradients = by_torch(given, gradient, monkeypatch)
    np.testing.assert_array_equal(fused.values().numpy(), values.numpy())
    found = [each for each in fused.gradients(gradient) if each is not None]
    assert len(found) == len(gradients)
    np.testing.assert_array_equal(found[0].numpy(), gradients[0].numpy())
    for mine, theirs in zip(found[1:], gradients[1:], strict=True):
        bound = 1e-5 * theirs.abs().max(dim=1, keepdim=True).values
        assert bool(((mine - theirs).abs() <= bound).all())


@pytest.mark.skipif(MODULE is None, reason="needs the C++ core")
def test_what_the_core_cannot_do_stays_with_torch() -> None:
    weight, offsets, scale, base, table = case("int4")
    assert Fused.of(weight, offsets, scale, base, table * 2.0) is None  # levels two apart
    assert Fused.of(weight, offsets, scale[:, :1].repeat(1, 32), base, table) is None  # blocks of four weights
    assert Fused.of(weight.double(), offsets.double(), scale.double(), base, table) is None

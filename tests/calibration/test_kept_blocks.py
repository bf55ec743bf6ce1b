"""Blocks that keep their intermediate values, and those that are computed again, give the same gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bitsmith.calibration.kept_blocks import KeptBlocks

LAYERS = 4


def _block(weight: Tensor, runs: list[int], layer: int, x: Tensor) -> Tensor:
    runs.append(layer)
    return torch.tanh(x @ weight) + x


def _gradients(room: int | None) -> tuple[int | None, list[int], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(8, 8, generator=generator).requires_grad_(True) for _ in range(LAYERS)]
    x = torch.randn(16, 8, generator=generator)
    kept, runs = KeptBlocks(LAYERS, room), list[int]()
    for layer, weight in enumerate(weights):
        x = kept.run(layer, partial(_block, weight, runs, layer), x)
    torch.autograd.backward(x.square().sum())
    return kept.keeping, runs, [weight.grad for weight in weights if weight.grad is not None]


@pytest.mark.parametrize(("room", "keeping"), [(0, 0), (2000, 1), (1 << 30, LAYERS), (None, LAYERS)])
def test_the_choice_changes_no_gradient(room: int | None, keeping: int) -> None:
    found, runs, gradients = _gradients(room)
    assert found == keeping
    # the first block always keeps its values in the run that measures them
    assert len(runs) == LAYERS + (LAYERS - max(keeping, 1))
    for one, other in zip(gradients, _gradients(1 << 30)[2], strict=True):
        assert torch.equal(one, other)


def test_nothing_is_measured_without_gradients() -> None:
    kept = KeptBlocks(LAYERS, 0)
    with torch.no_grad():
        kept.run(0, torch.tanh, torch.ones(2))
    assert kept.keeping is None

"""Adam in 32 bits equals torch's; in 8 bits it goes to the same place with a quarter of the states."""

from __future__ import annotations

import pytest
import torch

from bitsmith.calibration.adam import Adam


def _descend(small: bool, steps: int = 120) -> tuple[torch.Tensor, torch.Tensor, Adam]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(64, 128, generator=generator)
    value = torch.zeros(64, 128, requires_grad=True)
    optimizer = Adam([[value]], (0.9, 0.99), small=small)
    for step in range(steps):
        optimizer.zero_grad()
        (value - target).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step([0.1 * (1 - step / steps)])
    return value.detach(), target, optimizer


def test_equals_torch() -> None:
    own = torch.randn(30, 7, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    theirs = own.detach().clone().requires_grad_(True)
    ours, torchs = Adam([[own]], (0.9, 0.99)), torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    for step in range(5):
        for value, optimizer in ((own, ours), (theirs, torchs)):
            optimizer.zero_grad()
            (value * value.detach().roll(step)).sum().backward()
        ours.step([0.01])
        torchs.step()
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


def test_eight_bits() -> None:
    value, target, optimizer = _descend(small=True)
    exact, _, plain = _descend(small=False)
    assert float((value - target).square().mean()) < 2e-3
    assert float((exact - target).square().mean()) < 2e-3
    assert optimizer.nbytes < 0.27 * plain.nbytes


@pytest.mark.parametrize("small", [False, True])
def test_the_same_steps_give_the_same_values(small: bool) -> None:
    assert torch.equal(_descend(small, 10)[0], _descend(small, 10)[0])

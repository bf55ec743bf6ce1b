"""X^T X by Triton, as a program under Triton's interpreter; run by test_triton_grams."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

from bitsmith.calibration import grams, triton_grams
from bitsmith.calibration.grams import GramSum


def inputs(tokens: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and those of another model."""
    x = torch.from_numpy(np.random.default_rng(cols).standard_t(4, (tokens, cols)).astype(np.float32))
    return x, x + 0.05 * torch.randn(tokens, cols, generator=torch.Generator().manual_seed(0))


def sums() -> None:
    """Sums of two batches are those of rounded inputs, whatever the sizes of tiles, and are symmetric."""
    grams.core = lambda: None  # type: ignore[assignment]
    triton_grams._TILE = 32
    for tokens, cols in ((40, 20), (33, 70)):
        for dtype in (torch.float32, torch.bfloat16):
            x, original = (each.to(dtype) for each in inputs(tokens, cols))
            found = GramSum(rounded=True)
            found.add(x, original)
            found.add(x[:7], original[:7])
            rounded = torch.cat([x, x[:7]]).bfloat16().double()
            moved = (torch.cat([original, original[:7]]).float() - torch.cat([x, x[:7]]).float()).bfloat16().double()
            torch.testing.assert_close(found.gram.double(), rounded.T @ rounded, rtol=2e-5, atol=2e-4)
            torch.testing.assert_close(found.drift.double(), moved.T @ rounded, rtol=2e-5, atol=2e-4)
            assert torch.equal(found.gram, found.gram.T)


def plain() -> None:
    """What is not to be rounded stays with torch."""
    grams.core = lambda: None  # type: ignore[assignment]
    x, _ = inputs(40, 20)
    found = GramSum()
    found.add(x)
    torch.testing.assert_close(found.gram, x.T @ x, rtol=1e-5, atol=1e-5)
    rounded = x.bfloat16().float()
    assert not torch.allclose(found.gram, rounded.T @ rounded, rtol=1e-5, atol=1e-5)


CASES: dict[str, Callable[[], None]] = {each.__name__: each for each in (sums, plain)}

if __name__ == "__main__":
    CASES[sys.argv[1]]()

"""Products rounded to bfloat16: linears that share an input round it once, and no input is taken for another."""

from __future__ import annotations

import gc

import torch

from bitsmith.runtime.torch.products import RoundedProducts


def expected(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x.bfloat16(), w.bfloat16()).float()


def test_inputs_that_come_and_go_are_told_apart() -> None:
    kernel, w = RoundedProducts(), torch.randn(16, 32)
    for _ in range(50):  # freed memory, and the identity of objects, are used again
        x = torch.randn(4, 32)
        for _ in range(2):
            assert torch.equal(kernel.linear(x, w), expected(x, w))
        del x
        gc.collect()
        assert len(kernel.kept) == 1  # the matrix; nothing outlives its input


def test_matrices_that_come_and_go_are_told_apart() -> None:
    kernel, x = RoundedProducts(), torch.randn(4, 32)
    for _ in range(50):
        w = torch.randn(16, 32)
        assert torch.equal(kernel.linear(x, w), expected(x, w))
        assert len(kernel.kept) == 2
        del w
        gc.collect()


def test_inputs_with_gradients_are_not_kept() -> None:
    kernel, w = RoundedProducts(), torch.randn(16, 32)
    x = torch.randn(4, 32, requires_grad=True)
    kernel.linear(x, w).sum().backward()
    assert len(kernel.kept) == 1
    assert x.grad is not None

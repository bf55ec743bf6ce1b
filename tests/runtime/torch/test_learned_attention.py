"""Attention with gradients in bfloat16 against torch's in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.runtime.torch.core_ops import CoreOps, pass_ops
from bitsmith.runtime.torch.learned_attention import learned_attention, strips_of

SHAPES = [(2, 6, 2, 300, 16), (1, 4, 4, 128, 32), (3, 3, 1, 7, 8)]


def windowed(n: int, window: int) -> Tensor:
    """Each query sees itself and the positions before it, `window` of them if that is not 0: [1, n, n]."""
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    return (seen.triu(1 - window) if window else seen)[None]


def padded(windows: int, n: int) -> Tensor:
    """Every window has its own mask: the last tokens of each but the first are seen by themselves alone."""
    seen = windowed(n, 0).repeat(windows, 1, 1)
    for window in range(1, windows):
        seen[window, :, n - window :] = torch.eye(n, dtype=torch.bool)[:, n - window :]
    return seen


def with_gradients(attend: Callable[..., Tensor], parts: list[Tensor], weights: Tensor) -> list[Tensor]:
    parts = [part.clone().requires_grad_() for part in parts]
    out = attend(*parts)
    found = torch.autograd.grad(out, parts, weights.to(out.dtype))
    return [each.detach().double() for each in (out, *found)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", ["causal", "window", "padded", "none"])
def test_values_and_gradients(shape: tuple[int, ...], mask: str) -> None:
    windows, heads, kv_heads, n, head_dim = shape
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(windows, count, n, head_dim, generator=generator) for count in (heads, kv_heads, kv_heads)]
    weights = torch.randn(windows, n, heads * head_dim, generator=generator)
    masks = {"causal": windowed(n, 0), "window": windowed(n, 5), "padded": padded(windows, n), "none": None}
    visible, scale = masks[mask], 0.3

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = None if visible is None else visible[:, None]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=own, enable_gqa=True, scale=scale)
        return mixed.transpose(1, 2).reshape(windows, n, -1)

    strips = strips_of(visible, n, n)
    assert strips is not None
    ours = with_gradients(lambda q, k, v: learned_attention(q, k, v, strips, scale), parts, weights)
    wanted = with_gradients(exact, [part.double() for part in parts], weights)
    for got, expected in zip(ours, wanted, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 6e-3  # a few roundings of 2^-9 each


def test_keys_that_nobody_sees_are_left_out() -> None:
    strips = strips_of(windowed(400, 10), 400, 400)
    assert strips is not None
    assert [(strip.queries, strip.keys) for strip in strips] == [
        (slice(0, 128), slice(0, 128)),
        (slice(128, 256), slice(119, 256)),
        (slice(256, 384), slice(247, 384)),
        (slice(384, 400), slice(375, 400)),
    ]


def test_a_query_that_sees_nothing_is_left_to_torch() -> None:
    visible = windowed(4, 0)
    visible[0, 2] = False
    assert strips_of(visible, 4, 4) is None


@pytest.mark.parametrize("half", [False, True])
def test_it_is_used_where_gradients_are_wanted_in_bfloat16(half: bool) -> None:
    ops = pass_ops("cpu")
    if not isinstance(ops, CoreOps):
        pytest.skip("needs the C++ core")
    q, k, v = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = ops.attention(q, k, v, windowed(9, 0), window=0)
    assert ("_Attention" in type(out.grad_fn).__name__) is half
    assert (out.dtype == torch.bfloat16) is half
    plain = ops.attention(q, k, v, windowed(9, 0), window=0)
    torch.testing.assert_close(out.float(), plain, atol=3e-2 if half else 0.0, rtol=0.0)

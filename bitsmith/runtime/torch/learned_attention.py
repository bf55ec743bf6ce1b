"""Softmax attention with gradients on a CPU that multiplies bfloat16: some queries of one window at a time.

Scores and their softmax are float32, all other products bfloat16. The backward pass computes the weights of attention
again, as Dao et al. (2022, "FlashAttention", section 3.1) do, so that nothing of the size of the scores is kept. Keys
that none of the queries sees are left out. torch's own kernel takes more than twice the time here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_QUERIES = 128  # of each head at a time


@dataclass(frozen=True)
class Strip:
    """Some queries, and the keys that at least one of them sees.

    bias: 0 where a query sees a key, else minus infinity, float32 [windows or 1, queries, keys]; None where all see all
    """

    queries: slice
    keys: slice
    bias: Tensor | None

    def bias_of(self, window: int) -> Tensor | None:
        """The bias of one window, [queries, keys]."""
        return None if self.bias is None else self.bias[window if self.bias.shape[0] > 1 else 0]


def strips_of(visible: Tensor | None, n: int, keys: int) -> tuple[Strip, ...] | None:
    """The strips of n queries. visible: bool [windows or 1, n, keys], None: all see all.

    None if a query sees nothing: its output is a matter of convention.
    """
    if visible is not None and not bool(visible.any(-1).all()):
        return None
    return tuple(_strips(visible, n, keys))


def _strips(visible: Tensor | None, n: int, keys: int) -> Iterator[Strip]:
    for start in range(0, n, _QUERIES):
        queries = slice(start, min(start + _QUERIES, n))
        if visible is None:
            yield Strip(queries, slice(0, keys), None)
            continue
        seen = visible[:, queries].any(1).any(0).nonzero()
        own = slice(int(seen[0]), int(seen[-1]) + 1)
        mask = visible[:, queries, own]
        bias = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        yield Strip(queries, own, None if bool(mask.all()) else bias)


def learned_attention(q: Tensor, k: Tensor, v: Tensor, strips: tuple[Strip, ...], scale: float) -> Tensor:
    """Mixed values, bfloat16 [windows, n, heads * head_dim], differentiable once in q, k and v.

    q: float32 or bfloat16 [windows, heads, n, head_dim]; k, v: [windows, kv_heads, keys, head_dim]
    """
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _Attention.apply(q, k, v, strips, scale)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """See `learned_attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, strips: tuple[Strip, ...], scale: float) -> Tensor:
        windows, heads, n, _ = q.shape
        out = torch.empty((windows, n, heads * v.shape[-1]), dtype=torch.bfloat16)
        ctx.save_for_backward(q, k, v)
        ctx.strips, ctx.scale = strips, scale
        for window in range(windows):
            own, keys, values = _grouped(q, k, window, scale), k[window].float(), v[window].bfloat16()
            room = _by_head(out[window], heads)
            for strip in strips:
                weights = _weights(_rows(own, strip), keys, strip, window)
                mixed = weights @ values[:, strip.keys]
                room[:, strip.queries] = mixed.reshape(heads, -1, v.shape[-1])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        to_q, to_k, to_v = (torch.zeros(each.shape) for each in (q, k, v))
        heads, groups = q.shape[1], k.shape[1]
        for window in range(q.shape[0]):
            own, keys, values = _grouped(q, k, window, ctx.scale), k[window].float(), v[window].bfloat16()
            half_keys = keys.bfloat16()
            given = _by_head(gradient[window].bfloat16(), heads)
            given = given.reshape(groups, heads // groups, *given.shape[1:])
            for strip in ctx.strips:
                rows, to_mixed = _rows(own, strip), _rows(given, strip)
                weights = _weights(rows, keys, strip, window)
                to_v[window, :, strip.keys] += weights.mT @ to_mixed
                to_weights = to_mixed @ values[:, strip.keys].mT
                to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, torch.bfloat16)
                to_k[window, :, strip.keys] += to_scores.mT @ rows.bfloat16()
                to_rows = to_scores @ half_keys[:, strip.keys]
                to_q[window, :, strip.queries] = to_rows.reshape(heads, -1, q.shape[-1])
        to_q *= ctx.scale
        return to_q.to(q.dtype), to_k.to(k.dtype), to_v.to(v.dtype), None, None


def _grouped(q: Tensor, k: Tensor, window: int, scale: float) -> Tensor:
    """Scaled queries of a window by the head of keys that they share, float32 [kv_heads, group, n, head_dim]."""
    groups = k.shape[1]
    return (q[window].float() * scale).view(groups, q.shape[1] // groups, *q.shape[2:])


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[n, heads * head_dim] -> a view [heads, n, head_dim]."""
    return x.view(x.shape[0], heads, -1).transpose(0, 1)


def _rows(grouped: Tensor, strip: Strip) -> Tensor:
    """[kv_heads, group, n, head_dim] -> the rows of a strip, [kv_heads, group * queries, head_dim]."""
    return grouped[:, :, strip.queries].flatten(1, 2)


def _weights(rows: Tensor, keys: Tensor, strip: Strip, window: int) -> Tensor:
    """Weights of attention, bfloat16 [kv_heads, group * queries, keys]."""
    scores, bias = rows @ keys[:, strip.keys].mT, strip.bias_of(window)
    if bias is not None:
        scores.view(scores.shape[0], -1, *bias.shape).add_(bias)
    return scores.softmax(-1).bfloat16()

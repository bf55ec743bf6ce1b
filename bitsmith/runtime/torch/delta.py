"""The gated delta rule on torch, token by token or chunk by chunk (Yang et al. 2024, arXiv:2412.06464)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 64  # tokens whose corrections are solved for at once


def convolution(x: Tensor, taps: Tensor, before: Tensor | None, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `Ops.convolution`."""
    batch, n, channels = x.shape
    kept = taps.shape[1] - 1
    before = x.new_zeros(batch, kept, channels) if before is None else before
    whole = torch.cat((before, x), dim=1)
    y = functional.conv1d(whole.transpose(1, 2), taps[:, None], groups=channels).transpose(1, 2)
    if counts is None:
        after = whole[:, n:]
    else:
        at = counts[:, None] + torch.arange(kept, device=x.device)
        after = whole.gather(1, at[..., None].expand(batch, kept, channels))
    return functional.silu(y), after


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `Ops.delta_rule`."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # [batch, heads, n, dim]
    decay, rate = decay.transpose(1, 2), rate.transpose(1, 2)
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[1], k.shape[-1], v.shape[-1])
    if q.shape[2] == 1:
        out, state = _one(q[:, :, 0], k[:, :, 0], v[:, :, 0], decay[:, :, 0].exp(), rate[:, :, 0], state)
        return out[:, None], state
    dtype = q.dtype
    if q.device.type == "cpu":  # the corrections of a chunk lose digits; other devices are too slow in float64
        q, k, v, decay, rate, state = (each.double() for each in (q, k, v, decay, rate, state))
    parts = []
    for start in range(0, q.shape[2], CHUNK):
        at = slice(start, start + CHUNK)
        out, state = _chunk(q[:, :, at], k[:, :, at], v[:, :, at], decay[:, :, at], rate[:, :, at], state)
        parts.append(out)
    return torch.cat(parts, dim=2).transpose(1, 2).to(dtype), state.to(dtype)


def _one(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k [batch, heads, key_dim], v [batch, heads, value_dim], kept (a of the paper) [batch, heads]."""
    state = state * kept[..., None, None]
    missing = (v - (k[..., None, :] @ state)[..., 0, :]) * rate[..., None]
    state = state + k[..., None] * missing[..., None, :]
    return (q[..., None, :] @ state)[..., 0, :], state


def _chunk(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Some tokens at once. What each writes, u, solves u_i = b_i (v_i - d_i S^T k_i - sum_j<i d_i / d_j (k_i k_j) u_j).

    S is the state before, d the product of decays up to a token.
    """
    total = decay.cumsum(2)  # logarithm of d
    between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()  # d_i / d_j for j <= i, at most 1
    grown = total.exp()[..., None]
    system = (k * rate[..., None]) @ k.transpose(2, 3) * between
    wanted = (v - (k * grown) @ state) * rate[..., None]
    written = torch.linalg.solve_triangular(system.tril(-1), wanted, upper=False, unitriangular=True)
    out = (q * grown) @ state + (q @ k.transpose(2, 3) * between) @ written
    left = (total[..., -1:] - total).exp()[..., None]  # decay from a token to the chunk's end
    state = state * total[..., -1].exp()[..., None, None] + (k * left).transpose(2, 3) @ written
    return out, state

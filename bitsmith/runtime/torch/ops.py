"""The decoder's operations on torch, any device: the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.runtime.torch import delta

MOST_SCORES = 64 << 20  # attention scores held at a time
CLAMP, SLOPE = 7.0, 1.702  # of gpt-oss's gate (swiglu_limit and swiglu_alpha)


@dataclass(frozen=True)
class TorchOps:
    """`bitsmith.runtime.kernel.Ops` on torch tensors of one device; float32 throughout, differentiable."""

    device: str = "cpu"

    def array(self, values: np.ndarray) -> Tensor:
        """A copy on the device; dtype kept."""
        return torch.tensor(values, device=self.device)

    def numpy(self, x: Tensor) -> np.ndarray:
        """A numpy array, sharing memory on a CPU."""
        return np.asarray(x.detach().cpu().numpy())

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 zeros on the device."""
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def unit(self, x: Tensor, eps: float) -> Tensor:
        """See `Ops.unit`."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    def rotation(self, positions: np.ndarray, frequencies: np.ndarray, magnitude: float) -> tuple[Tensor, Tensor]:
        """See `Ops.rotation`."""
        angles = self.array(positions.astype(np.float32))[:, None, :, None] * self.array(frequencies)
        return angles.cos() * magnitude, angles.sin() * magnitude

    def rotate(self, x: Tensor, rotation: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        """See `Ops.rotate`."""
        cos, sin = rotation
        dim = 2 * cos.shape[-1]
        turned, rest = x[..., :dim], x[..., dim:]
        if interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        else:
            a, b = turned[..., : dim // 2], turned[..., dim // 2 :]
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: Tensor | None,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """See `Ops.attention`; queries are taken in parts, so that scores never need more than 256 MB or a query's."""
        batch, heads, n, _ = q.shape
        part = max(1, MOST_SCORES // (batch * heads * k.shape[2]))
        plain = not softcap and sinks is None
        parts = []
        for start in range(0, n, part):
            own = None if visible is None else visible[:, start : start + part]
            queries = q[:, :, start : start + part]
            if plain:
                parts.append(_attend(queries, k, v, own, scale))
            else:
                parts.append(_attend_by_scores(queries, k, v, own, _Scores(scale, softcap, sinks)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """See `Ops.gated`."""
        if activation == "silu":
            return functional.silu(gate) * up
        if activation == "gelu_tanh":
            return functional.gelu(gate, approximate="tanh") * up
        gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
        return gate * torch.sigmoid(gate * SLOPE) * (up + 1.0)

    def sigmoid(self, x: Tensor) -> Tensor:
        """See `Ops.sigmoid`."""
        return torch.sigmoid(x)

    def softplus(self, x: Tensor) -> Tensor:
        """See `Ops.softplus`."""
        return functional.softplus(x)

    def normalized(self, x: Tensor) -> Tensor:
        """See `Ops.normalized`."""
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """See `Ops.joined`."""
        return torch.cat(tuple(parts), dim=-1)

    def convolution(
        self, x: Tensor, taps: Tensor, before: Tensor | None, counts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Ops.convolution`."""
        return delta.convolution(x, taps, before, counts)

    def delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Ops.delta_rule`."""
        return delta.delta_rule(q, k, v, decay, rate, state)

    def softcapped(self, x: Tensor, cap: float) -> Tensor:
        """See `Ops.softcapped`."""
        return torch.tanh(x / cap) * cap

    def route(self, scores: Tensor, used: int, how: str, *, normalize: bool) -> tuple[Tensor, Tensor]:
        """See `Ops.route`."""
        if how == "chosen":
            found, chosen = scores.topk(used, dim=-1)
            return found.softmax(-1), chosen
        weights, chosen = scores.softmax(-1).topk(used, dim=-1)
        return (weights / weights.sum(-1, keepdim=True) if normalize else weights), chosen

    def where(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """See `Ops.where`."""
        rows, columns = torch.where(chosen)
        return rows, columns

    def add_rows(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """See `Ops.add_rows`."""
        return x.index_add(0, rows, values)


@dataclass(frozen=True)
class _Scores:
    """How scores are made of q k^T; see `Ops.attention`."""

    scale: float | None
    softcap: float
    sinks: Tensor | None


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, scale: float | None) -> Tensor:
    """[batch, heads, n, head_dim] -> [batch, n, heads * head_dim]."""
    batch, heads, n, _ = q.shape
    mask = None if visible is None else visible[:, None]
    mixed = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=heads != k.shape[1], scale=scale
    )
    return mixed.transpose(1, 2).reshape(batch, n, -1)


def _attend_by_scores(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, how: _Scores) -> Tensor:
    """The same, for scores with a cap or with sinks."""
    batch, heads, n, head_dim = q.shape
    group = heads // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(2, 3) * (head_dim**-0.5 if how.scale is None else how.scale)
    if how.softcap:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    if how.sinks is not None:
        sinks = how.sinks[None, :, None, None].expand(batch, heads, n, 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, n, -1)

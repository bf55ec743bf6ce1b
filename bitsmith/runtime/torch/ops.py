"""The decoder's operations on torch, any device: the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MOST_SCORES = 64 << 20  # attention scores held at a time


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

    def attention(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """See `Ops.attention`; queries are taken in parts, so that scores never need more than 256 MB or a query's."""
        batch, heads, n, _ = q.shape
        part = max(1, MOST_SCORES // (batch * heads * k.shape[2]))
        parts = [
            _attend(q[:, :, start : start + part], k, v, None if visible is None else visible[:, start : start + part])
            for start in range(0, n, part)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Ops.swiglu`."""
        return functional.silu(gate) * up


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """[batch, heads, n, head_dim] -> [batch, n, heads * head_dim]."""
    batch, heads, n, head_dim = q.shape
    mask = None if visible is None else visible[:, None]
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=heads != k.shape[1])
    return mixed.transpose(1, 2).reshape(batch, n, heads * head_dim)

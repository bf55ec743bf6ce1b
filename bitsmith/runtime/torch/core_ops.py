"""The decoder's operations on torch, but those that the C++ core has: for passes without a cache on a CPU.

What needs gradients stays with torch, but for attention in bfloat16. Results differ from torch's in their last bits,
and do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from bitsmith.runtime.torch.learned_attention import learned_attention, strips_of
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.system.core import core


def pass_ops(device: str) -> TorchOps:
    """The fastest operations for passes on a device."""
    module = core()
    if device != "cpu" or module is None or not hasattr(module, "causal_attention"):
        return TorchOps(device)
    return CoreOps(device, module)


@dataclass(frozen=True)
class CoreOps(TorchOps):
    """See the module. core: the extension module"""

    core: ModuleType | None = None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        if self.core is None or not _plain(x, weight) or not x.shape[-1]:
            return super().rms_norm(x, weight, eps)
        out, threads = _empty(x), torch.get_num_threads()
        self.core.normed_rows(_rows(x), _array(weight.contiguous()), eps=eps, out=_rows(out), threads=threads)
        return out

    def rotate(self, x: Tensor, rotation: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
        """See `Ops.rotate`."""
        cos, sin = rotation
        if self.core is None or not _plain(x, cos, sin) or x.ndim != 4 or cos.shape[:3] != (1, 1, x.shape[2]):
            return super().rotate(x, rotation, interleaved)
        tables = (_array(each.reshape(each.shape[-2:]).contiguous()) for each in rotation)
        out = _empty(x)
        threads = torch.get_num_threads()
        self.core.rotated_heads(_array(x), *tables, interleaved=interleaved, out=_array(out), threads=threads)
        return out

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
        """See `Ops.attention`. Scores exist for some queries and keys at a time."""
        given = (q, k, v) if sinks is None else (q, k, v, sinks)
        if window is not None and not softcap and sinks is None and _learns_in_bfloat16(q, k, v):
            strips = strips_of(visible, q.shape[2], k.shape[2])
            if strips is not None:
                return learned_attention(q, k, v, strips, q.shape[-1] ** -0.5 if scale is None else scale)
        if self.core is None or window is None or not _plain(*given) or k.shape != v.shape:
            return super().attention(q, k, v, visible, scale=scale, softcap=softcap, sinks=sinks, window=window)
        batch, heads, n, head_dim = q.shape
        out = torch.empty((batch, n, heads * head_dim), dtype=torch.float32)
        self.core.causal_attention(
            _array(q),
            _array(k),
            _array(v),
            out=_array(out),
            scale=head_dim**-0.5 if scale is None else scale,
            window=window,
            softcap=softcap,
            sinks=None if sinks is None else _array(sinks.contiguous()),
            threads=torch.get_num_threads(),
        )
        return out

    def gated(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """See `Ops.gated`."""
        if self.core is None or not _plain(gate, up) or not gate.shape[-1]:
            return super().gated(gate, up, activation)
        out, threads = _empty(gate), torch.get_num_threads()
        self.core.gated_rows(_rows(gate), _rows(up), activation=activation, out=_rows(out), threads=threads)
        return out


def _plain(*tensors: Tensor) -> bool:
    """Whether the core can read them: float32, and no gradients are wanted."""
    return not _learns(*tensors) and all(each.dtype == torch.float32 for each in tensors)


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _learns_in_bfloat16(*tensors: Tensor) -> bool:
    """Whether gradients are wanted, and products are to be computed in bfloat16."""
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return half and _learns(*tensors)


def _empty(x: Tensor) -> Tensor:
    """Room for a result of the same shape, without gaps."""
    return torch.empty(x.shape, dtype=torch.float32)


def _rows(x: Tensor) -> np.ndarray:
    """[..., cols] as [rows, cols], without gaps."""
    return _array(x.reshape(-1, x.shape[-1]).contiguous())


def _array(x: Tensor) -> np.ndarray:
    """The tensor as numpy, with its strides; memory is shared."""
    return np.asarray(x.detach().numpy())

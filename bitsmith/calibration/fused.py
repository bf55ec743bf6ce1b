"""Rounding with learned offsets, and its gradient, in one pass each of the C++ core.

`_Decoded` of `bitsmith.calibration.trainable` is the definition. Values equal it to the bit; the gradients of scales
and of the grid's offsets are summed in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from bitsmith.system.core import core


class _How(TypedDict):
    """What every call of the core gets."""

    first: float
    levels: int
    threads: int
    isa: str


@dataclass(frozen=True)
class Fused:
    """One matrix that is rounded on a grid of consecutive levels.

    weight, offsets: float32 [rows, cols]
    scale, base: float32 [rows, blocks]; base is None where the grid has no offset
    first, levels: the lowest level, and their number
    isa: the instruction set; "" is the best available one
    """

    weight: Tensor
    offsets: Tensor
    scale: Tensor
    base: Tensor | None
    first: float
    levels: int
    isa: str = ""

    @classmethod
    def of(
        cls, weight: Tensor, offsets: Tensor, scale: Tensor, base: Tensor | None, table: Tensor, isa: str = ""
    ) -> Fused | None:
        """The matrix; None where there is no core that can do it, which needs consecutive levels, and wide blocks."""
        module = core()
        if module is None or not hasattr(module, "trainable_values") or weight.device.type != "cpu":
            return None
        block = weight.shape[1] // scale.shape[1]
        if block % module.trainable_lanes(isa=isa) or not bool((table.diff() == 1.0).all()):
            return None
        given = [weight, offsets, scale, *([] if base is None else [base])]
        if any(each.dtype != torch.float32 for each in given):
            return None
        weight, offsets, scale = (each.detach().contiguous() for each in given[:3])
        base = None if base is None else base.detach().contiguous()
        return cls(weight, offsets, scale, base, float(table[0]), len(table), isa)

    def values(self) -> Tensor:
        """The rounded values, float32 [rows, cols]."""
        out = torch.empty_like(self.weight)
        module = core()
        assert module is not None
        module.trainable_values(*self._arrays, values=out.numpy(), **self._how)
        return out

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of offsets, scale and base, from that of the values, float32 [rows, cols]."""
        to_offsets, to_scale = torch.empty_like(self.weight), torch.empty_like(self.scale)
        to_base = None if self.base is None else torch.empty_like(self.scale)
        module = core()
        assert module is not None
        module.trainable_gradients(
            gradient.float().contiguous().numpy(),
            *self._arrays,
            to_offsets=to_offsets.numpy(),
            to_scale=to_scale.numpy(),
            to_base=None if to_base is None else to_base.numpy(),
            **self._how,
        )
        return to_offsets, to_scale, to_base

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        base = None if self.base is None else self.base.numpy()
        return self.weight.numpy(), self.offsets.numpy(), self.scale.numpy(), base

    @property
    def _how(self) -> _How:
        return {"first": self.first, "levels": self.levels, "threads": torch.get_num_threads(), "isa": self.isa}

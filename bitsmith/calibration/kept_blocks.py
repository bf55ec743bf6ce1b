"""Which blocks keep what their backward pass needs, and which are computed again (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bitsmith.system.memory import available_memory

_SHARE = 3  # one part in so many of the free memory


class KeptBlocks:
    """Runs blocks with gradients. As many of the first blocks as fit keep their intermediate values.

    The first block's are measured when it runs for the first time; the others' are taken to be as large. Values and
    gradients do not depend on the choice.

    room: bytes for intermediate values; None: a third of what is free at the first run
    """

    def __init__(self, layers: int, room: int | None) -> None:
        self._layers, self._room = layers, room
        self.keeping: int | None = None

    def run(self, layer: int, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A block's output. block: of the hidden states alone"""
        if not torch.is_grad_enabled():
            return block(x)
        if self.keeping is None:
            meter = _Meter()
            with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda kept: kept):
                found = block(x)
            room = (available_memory() or 0) // _SHARE if self._room is None else self._room
            self.keeping = min(self._layers, room // max(meter.nbytes, 1))
            return found
        if layer < self.keeping:
            return block(x)
        again: Tensor = checkpoint(block, x, use_reentrant=False)
        return again


class _Meter:
    """Counts the bytes of tensors that are kept for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._seen: set[int] = set()

    def pack(self, kept: Any) -> Any:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.nbytes += storage.nbytes()
        return kept

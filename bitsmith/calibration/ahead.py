"""Blocks of a model that are read ahead: the next one comes while an accelerator computes with the present one.

A thread reads and decodes the next block into memory that is pinned, from where it goes to the device on a stream of
its own: at once if the device has room for it beside its work, else when it is asked for. On a CPU nothing is read
ahead, as it would take the memory of a block and share the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.weights import Block, WeightLoader


@dataclass(frozen=True)
class _Copied:
    """A block on the device. arrived: recorded behind its copies; None where nothing needs to be waited for"""

    block: Block
    arrived: Any = None


class BlocksAhead:
    """Gives the blocks of a model in turn.

    loader: reads blocks onto the device
    ahead: whether blocks are read ahead
    room: whether the device has room for the next block now; asked by the thread that reads it
    """

    def __init__(self, loader: WeightLoader, *, ahead: bool, room: Callable[[int], bool] = lambda nbytes: True) -> None:
        self._loader, self._room = loader, room
        self._device = torch.device(loader.device)
        self._reader = ThreadPoolExecutor(1, "next block") if ahead else None
        self._next: tuple[int, Future[tuple[Block, _Copied | None]]] | None = None

    def take(self, layer: int) -> Block:
        """The block of a layer; begins to read the next one. Raises as the loader does."""
        if self._reader is None:
            return self._loader.block(layer)
        found = self._next[1] if self._next is not None and self._next[0] == layer else None
        self._next = None
        waiting, copied = (found or self._reader.submit(self._read, layer, False)).result()
        copied = copied or self._copied(waiting)
        if copied.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(copied.arrived)
        if layer + 1 < self._loader.config.layers:
            self._next = layer + 1, self._reader.submit(self._read, layer + 1, True)
        return copied.block

    def close(self) -> None:
        """Read nothing more."""
        self._next = None
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, layer: int, at_once: bool) -> tuple[Block, _Copied | None]:
        """The block in the host's memory, and on the device if there is room."""
        kernel = DenseKernel(device="cpu")
        host = replace(self._loader, kernel=kernel, ops=TorchOps("cpu"), device="cpu")
        block = host.block(layer)
        if self._device.type == "cuda":
            block = mapped(block, lambda each: each.pin_memory(), kernel)
        if not at_once or not self._room(nbytes(block)):
            return block, None
        return block, self._copied(block)

    def _copied(self, block: Block) -> _Copied:
        kernel = DenseKernel(device=str(self._device))
        if self._device.type != "cuda":
            return _Copied(mapped(block, lambda each: each.to(self._device), kernel))
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        main = torch.cuda.default_stream(self._device)

        def copy(each: Tensor) -> Tensor:
            made = each.to(self._device, non_blocking=True)
            made.record_stream(main)  # its memory is not used again before that stream is done with it
            return made

        with torch.cuda.stream(stream):
            found = mapped(block, copy, kernel)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(stream)
        return _Copied(found, arrived)


def mapped(block: Block, change: Callable[[Tensor], Tensor], kernel: DenseKernel) -> Block:
    """The block with all its tensors changed, for a kernel of dense matrices."""
    norms = {name: change(norm) for name, norm in block.norms.items()}
    linears = {
        name: replace(
            linear,
            kernel=kernel,
            prepared=change(linear.prepared),
            bias=None if linear.bias is None else change(linear.bias),
            adapter=None if linear.adapter is None else (change(linear.adapter[0]), change(linear.adapter[1])),
        )
        for name, linear in block.linears.items()
    }
    return Block(norms, linears)


def nbytes(block: Block) -> int:
    """Bytes of a block's matrices."""
    return sum(linear.prepared.nbytes for linear in block.linears.values())

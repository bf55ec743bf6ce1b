"""The hidden states of all calibration windows between two blocks: in memory, or in a file if they are large."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from copy import copy
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.pieces import BATCH_TOKENS, Pieces
from bitsmith.errors import FileError
from bitsmith.system.memory import available_memory
from bitsmith.work.state import DamagedError, State, Streamed


class HiddenStates:
    """float32 [windows, context, hidden], read and overwritten in batches of windows.

    memory: bytes that they may take in memory; larger ones go to an unnamed temporary file (in TMPDIR), which
        disappears with the process. None: half of the memory that is available now
    further: further numbers a token that need the same memory
    store: memory to lie in, float32, at least as many values; None: their own
    pieces: how batches are computed; set it to share it with other passes
    """

    def __init__(
        self,
        windows: int,
        context: int,
        hidden: int,
        *,
        memory: int | None = None,
        further: int = 0,
        store: Tensor | None = None,
    ) -> None:
        """Reserve the space. Raises FileError if the disk has no room for the temporary file."""
        self.shape = (windows, context, hidden)
        self.pieces = Pieces()
        size = 4 * windows * context * hidden
        room = available_memory() if memory is None else 2 * memory
        self.on_disk = room is not None and size + 4 * windows * context * further > room // 2
        self._window_bytes = 4 * context * hidden
        self._held: Tensor | None = None
        if not self.on_disk:
            own = torch.empty(size // 4, dtype=torch.float32) if store is None else store[: size // 4]
            self._held = own.reshape(self.shape)
            return
        self._file = tempfile.TemporaryFile(prefix="bitsmith-")  # noqa: SIM115 - lives as long as this object
        try:
            os.posix_fallocate(self._file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else None
        except OSError as error:
            raise self._cannot(error) from error

    def copy(self) -> Self:
        """A copy, in memory or on disk like this one."""
        other = copy(self)
        HiddenStates.__init__(other, *self.shape, memory=0 if self.on_disk else self._window_bytes * self.shape[0])
        other.pieces = self.pieces
        other.become(self)
        return other

    def become(self, other: HiddenStates) -> None:
        """Copy the values of `other`, which has the same shape."""
        for at in self.batches():
            self.write(at, other.read(at))

    def __len__(self) -> int:
        """Number of windows."""
        return self.shape[0]

    def __getitem__(self, windows: np.ndarray) -> Tensor:
        """Windows by number, int64 [n] -> float32 [n, context, hidden]."""
        return torch.cat([self.read(slice(int(window), int(window) + 1)) for window in windows])

    def batches(self) -> Iterator[slice]:
        """Windows that go through a block together, in order."""
        windows, context, _ = self.shape
        step = max(1, BATCH_TOKENS // context)
        for start in range(0, windows, step):
            yield slice(start, min(start + step, windows))

    def read(self, at: slice) -> Tensor:
        """Windows `at`, float32 [windows, context, hidden]; do not change it in place."""
        if self._held is not None:
            return self._held[at]
        values = np.empty((at.stop - at.start, *self.shape[1:]), np.float32)
        data = values.reshape(-1).view(np.uint8).data
        try:
            done = 0
            while done < len(data):
                got = os.preadv(self._file.fileno(), [data[done:]], at.start * self._window_bytes + done)
                if not got:
                    raise OSError("the file is shorter than what was written to it")
                done += got
        except OSError as error:
            raise self._cannot(error) from error
        return torch.from_numpy(values)

    def write(self, at: slice, values: Tensor) -> None:
        """Replace windows `at`. Raises FileError if they cannot be written to disk."""
        if self._held is not None:
            self._held[at] = values
            return
        data = np.ascontiguousarray(values.detach().cpu().numpy(), np.float32).reshape(-1).view(np.uint8).data
        offset = at.start * self._window_bytes
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise self._cannot(error) from error

    def streamed(self) -> Streamed:
        """The values, for a state file."""

        def pieces() -> Iterator[np.ndarray]:
            for at in self.batches():
                yield self.read(at).detach().cpu().numpy()

        return Streamed(self.shape, np.dtype(np.float32), pieces)

    def take(self, state: State, name: str) -> None:
        """Take over the values of an array of a state file. Raises DamagedError for another shape."""
        if state.shape(name) != self.shape:
            raise DamagedError(f"{name} has shape {state.shape(name)}, not {self.shape}")
        for at in self.batches():
            self.write(at, torch.from_numpy(state.rows(name, at.start, at.stop)))

    def _cannot(self, error: OSError) -> FileError:
        size = self._window_bytes * self.shape[0]
        return FileError(
            f"the hidden states of calibration take {size:,} bytes, more than --memory allows, and cannot be kept in "
            f"{tempfile.gettempdir()} ({error.strerror or error}); free space there, set TMPDIR to another disk, allow "
            "more --memory, or use fewer --calibration-tokens."
        )

"""Gradients of a block's loss: on CUDA one graph of kernels a step, in pieces where memory is short.

A step of learned rounding launches hundreds of small kernels. On a GPU a CUDA graph launches them at once: it is
captured from the first step, and replayed on buffers into which the windows of each step are copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.accelerator import release
from bitsmith.calibration.pieces import Pieces
from bitsmith.system.pressure import is_shortage

_WARM = 2  # runs before a capture, which must not allocate what libraries allocate once
_log = logging.getLogger(__name__)

Capture = Callable[[Callable[[], None]], Callable[[], None]]  # work that launches kernels -> what launches them again
Read = Callable[[np.ndarray], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor, np.ndarray], Tensor]


@dataclass
class Gradients:
    """Leaves the gradients of the mean loss of some windows in parameters.

    read: numbers of windows, int64 [count] -> their inputs and targets on the device
    loss: (inputs, targets, numbers) -> the mean loss, a scalar
    params: the parameters, all of which the loss depends on
    capture: how a step is captured; None: steps are computed operation by operation. The loss must not read the numbers
        of windows then, nor wait for the device
    pieces: how the windows of a step are computed
    notes: for the user
    """

    read: Read
    loss: Loss
    params: tuple[Tensor, ...]
    capture: Capture | None = None
    pieces: Pieces = field(default_factory=Pieces)
    notes: list[str] = field(default_factory=list)
    _replay: Callable[[], None] | None = None
    _buffers: tuple[Tensor, Tensor] | None = None

    def __call__(self, windows: np.ndarray) -> None:
        """Compute the gradients for some windows. Raises as `loss` does, if a single window finds no memory."""
        self.pieces.again(lambda: self._set(windows), len(windows))

    def _set(self, windows: np.ndarray) -> None:
        if self.capture is not None and self.pieces.parts == 1 and self._graphed(windows, self.capture):
            return
        if self._buffers is not None:
            self._replay = self._buffers = None
            release(self.params[0].device)
        self._clear()
        for at in self.pieces.of(slice(0, len(windows))):
            x, wanted = self.read(windows[at])
            with torch.enable_grad():
                loss = self.loss(x, wanted, windows[at]) * (len(windows[at]) / len(windows))
            torch.autograd.backward(loss)

    def _graphed(self, windows: np.ndarray, capture: Capture) -> bool:
        """Compute the gradients by a captured graph. False if the step cannot be captured."""
        x, wanted = self.read(windows)
        if self._buffers is None:
            self._buffers = x.clone(), wanted.clone()
        own, own_wanted = self._buffers
        if own.shape != x.shape:
            return False
        own.copy_(x)
        own_wanted.copy_(wanted)

        def work() -> None:
            self._clear()  # so that every replay sets the gradients, and does not add to them
            with torch.enable_grad():
                loss = self.loss(own, own_wanted, windows)
            torch.autograd.backward(loss)

        if self._replay is None:
            try:
                self._replay = capture(work)
            except RuntimeError as error:
                if is_shortage(error):
                    raise
                self.capture = self._buffers = None
                _log.info("steps are not captured as a CUDA graph: %s", error)
                self._note("learned rounding ran operation by operation, because CUDA could not capture its steps")
                return False
        self._replay()
        return True

    def _clear(self) -> None:
        for param in self.params:
            param.grad = None

    def _note(self, text: str) -> None:
        self.notes[:] = [text]


def cuda_capture(work: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of some work. Raises RuntimeError if the work waits for the device, or does something else that
    graphs cannot.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may copy the next block's weights
        work()
    return graph.replay


def captures(device: torch.device) -> Capture | None:
    """How steps are captured on a device; None where they are not."""
    return cuda_capture if device.type == "cuda" else None


def joined_notes(notes: Iterable[str], kept: list[str]) -> None:
    """Add notes to those that are kept, each once."""
    kept += [note for note in dict.fromkeys(notes) if note not in kept]

"""Hidden states on their way through a block: batch by batch, and in pieces where memory is short."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitsmith.calibration.beside import WindowStates
from bitsmith.runtime.decoder import Decoder, Pass, Routing


class Staged:
    """Inputs of linears that are added to their meters when a whole batch of windows has come through.

    A piece that did not come through leaves nothing behind, and pieces are added as the batch that they are.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Callable[[Tensor], None], list[Tensor]]] = {}
        self._kept: dict[str, int] = {}

    def adding(self, name: str, add: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """In place of `add`: takes the inputs of the linear `name`, float32 [..., cols], for later."""
        own = self._waiting.setdefault(name, (add, []))[1]
        return lambda x: own.append(x.reshape(-1, x.shape[-1]))

    def begin(self) -> None:
        """A piece begins; what one before it has left without coming through is dropped."""
        for name, (_, rows) in self._waiting.items():
            del rows[self._kept.get(name, 0) :]

    def keep(self) -> None:
        """The piece has come through."""
        self._kept = {name: len(rows) for name, (_, rows) in self._waiting.items()}

    def add(self) -> None:
        """Add the batch."""
        for add, rows in self._waiting.values():
            if rows:
                add(rows[0] if len(rows) == 1 else torch.cat(rows))
            rows.clear()
        self._kept = {}


def pass_through(
    decoder: Decoder,
    layer: int,
    hidden: WindowStates,
    compute: Callable[[Tensor, Pass, slice], Tensor],
    *,
    routing: Routing | None = None,
    staged: Staged | None = None,
) -> None:
    """Replace hidden states by what `compute` gives of them.

    compute: (hidden states float32 [windows, n, hidden], their pass through the layer, their windows) -> new ones
    routing: told once of the experts that each token passes
    staged: what the linears of the block record into, if they do
    """
    device = decoder.weights.output_norm.device
    told = Routing().chosen if routing is None else routing.chosen

    def step(at: slice) -> None:
        if staged is not None:
            staged.begin()
        chosen: list[tuple[int, Tensor]] = []
        own = None if routing is None else Routing(routing.every, lambda *each: chosen.append(each))
        x, shared = hidden.read(at).to(device), hidden.place(decoder, layer, at).watched(own)
        y = compute(x, shared, at)
        hidden.beside.keep(layer, at, shared)
        hidden.write(at, y)
        if staged is not None:
            staged.keep()
        for each in chosen:
            told(*each)

    for batch in hidden.batches():
        hidden.pieces.run(batch, step)
        if staged is not None:
            staged.add()

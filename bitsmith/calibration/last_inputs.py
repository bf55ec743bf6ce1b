"""The inputs of the last linear of a part, kept so that the part is not computed again after its rounding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.hidden import HiddenStates
from bitsmith.calibration.inputs import advance_part
from bitsmith.models.arch.block import Part
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.runtime.decoder import Decoder, Routing
from bitsmith.runtime.weights import Block
from bitsmith.system.pressure import is_shortage


class Store:
    """Memory for the inputs of one part after the other: pages that are new to a process cost time.

    room: bytes that it may take; None: any number
    """

    def __init__(self, room: int | None = 0) -> None:
        self.room = room
        self._held = torch.empty(0, dtype=torch.float32)

    def of(self, count: int) -> Tensor:
        """Memory for so many values, float32 [at least count]; the values before are lost."""
        if len(self._held) < count:
            self._held = self._held[:0].clone()  # the old memory is free before the new is taken
            self._held = torch.empty(count, dtype=torch.float32)
        return self._held


@dataclass
class LastInputs:
    """Inputs of the linear that ends a part, for all windows of one model.

    linear: its name; "" if the part has no such linear, or its inputs take more than the memory allowed
    store: where the inputs of all parts lie, one after the other
    states: where the inputs are kept; None until the first are there
    full: whether those of all windows are there
    given_up: whether memory did not suffice, so that nothing is kept and the part is computed again
    """

    linear: str = ""
    store: Store = field(default_factory=Store)
    states: HiddenStates | None = None
    full: bool = False
    given_up: bool = False

    @classmethod
    def of(cls, part: Part, block: Block, hidden: WindowStates, store: Store) -> LastInputs:
        """Nothing is kept yet."""
        name = part.operation.last
        if not name or hidden.on_disk:
            return cls()
        size = input_bytes(len(hidden) * hidden.shape[1], int(block.linears[name].prepared.shape[1]))
        return cls(name, store) if store.room is None or size <= store.room else cls()

    def among(self, groups: Iterable[LinearGroup]) -> LinearGroup | None:
        """The group whose input is to be kept; None if it is not among these."""
        return next((group for group in groups if self.linear in group.linears), None) if self.linear else None

    def keep(self, hidden: WindowStates, at: slice, x: Tensor) -> None:
        """Keep the inputs of the windows `at`, float32 [windows, n, cols]."""
        if self.given_up:
            return
        if self.states is None:
            windows, context, _ = hidden.shape
            count = windows * context * x.shape[-1]
            try:
                store = self.store.of(count)
            except (MemoryError, RuntimeError) as error:
                if not is_shortage(error):
                    raise
                self.given_up = True
                return
            self.states = HiddenStates(windows, context, x.shape[-1], memory=input_bytes(count, 1), store=store)
        self.states.write(at, x.detach())
        self.full = at.stop == len(hidden)

    def advance(
        self,
        decoder: Decoder,
        layer: int,
        part: Part,
        block: Block,
        hidden: WindowStates,
        routing: Routing | None = None,
    ) -> None:
        """Advance hidden states through the part, as `advance_part` does. Nothing is kept afterwards."""
        if not self.full or self.states is None:
            advance_part(decoder, layer, part, block, hidden, routing)
            return
        for batch in hidden.batches():
            hidden.pieces.run(batch, lambda at: self._advance(decoder, part, block, hidden, at))
        self.states, self.full = None, False

    def _advance(self, decoder: Decoder, part: Part, block: Block, hidden: WindowStates, at: slice) -> None:
        assert self.states is not None
        x, seen = hidden.read(at).to(block.device), self.states.read(at).to(block.device)
        hidden.write(at, decoder.added(part, block, x, block.linears[self.linear](seen)))


def input_bytes(tokens: int, cols: int) -> int:
    """Bytes of the inputs of a linear: float32 [tokens, cols]."""
    return 4 * tokens * cols

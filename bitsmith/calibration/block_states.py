"""Hidden states of the rounded model and of the original before a block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from bitsmith.calibration.beside import WindowStates
from bitsmith.calibration.compared import Compared
from bitsmith.calibration.grams import SUMMED_ROWS
from bitsmith.calibration.last_inputs import LastInputs, Store
from bitsmith.models.arch.block import Part
from bitsmith.runtime.weights import Block

_T = TypeVar("_T")


@dataclass(frozen=True)
class BlockStates:
    """Hidden states before a block.

    hidden: from the rounded blocks
    truth: from the original model; None if the method does not need them
    stores: memory for the inputs of a part's last linear, one for each of them
    last, last_truth: the kept inputs of the last linear of the present part
    """

    hidden: WindowStates
    truth: WindowStates | None
    stores: tuple[Store, Store] = field(default_factory=lambda: (Store(), Store()))
    last: LastInputs = field(default_factory=LastInputs)
    last_truth: LastInputs = field(default_factory=LastInputs)

    def repeated(self, work: Callable[[], _T]) -> _T:
        """What `work` returns; it is called again, with smaller pieces, where memory does not suffice."""
        batch = next(self.hidden.batches())
        return self.hidden.pieces.again(work, batch.stop - batch.start)

    def pieces(self, compared: Collection[Compared], *, small: bool = False) -> Iterator[slice]:
        """The pieces of all batches; after each batch its sums are those of the whole batch.

        small: whether a piece has one window, or `SUMMED_ROWS` tokens
        """
        most = max(1, SUMMED_ROWS // self.hidden.shape[1])
        for batch in self.hidden.batches():
            for piece in self.hidden.pieces.of(batch):
                step = most if small else piece.stop - piece.start
                yield from (slice(at, min(at + step, piece.stop)) for at in range(piece.start, piece.stop, step))
            for each in compared:
                each.end()

    def before(self, part: Part, block: Block) -> BlockStates:
        """The states before a part, with places for the inputs of its last linear."""
        last, last_truth = (LastInputs.of(part, block, self.hidden, store) for store in self.stores)
        return replace(self, last=last, last_truth=last_truth)

"""Batches of windows, and what happens when memory does not suffice for one: it is computed in pieces.

Rows of a product do not depend on how many rows are computed together, and sums over tokens are taken in the order and
in the parts that whole batches have (`calibration.stats`). So on a CPU the results are the same, bit for bit; products
of other sizes may differ in their last bits on an accelerator, and the note says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from bitsmith.system.pressure import is_shortage

BATCH_TOKENS = 2048  # tokens that go through a block at a time
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass
class Pieces:
    """How many pieces a batch is computed in, one after the other. All passes of a run share it.

    parts: number of pieces of a batch; doubled when memory does not suffice
    exact: whether results are the same whatever the pieces
    of_what: what is computed in pieces, for the note
    """

    parts: int = 1
    exact: bool = True
    notes: list[str] = field(default_factory=list)
    of_what: str = "batches of windows"

    def run(self, batch: slice, step: Callable[[slice], None]) -> None:
        """Call `step` with all pieces of a batch of windows, in order.

        Where memory does not suffice, pieces are smaller from there on.
        step: changes nothing before the last thing it does, so that it can be called again
        Raises as `step` does, if a single window does not find memory.
        """
        windows, start = batch.stop - batch.start, batch.start
        while start < batch.stop:
            piece = slice(start, min(start + self._windows(windows), batch.stop))
            if self._did(lambda piece=piece: step(piece), piece.stop - piece.start):  # type: ignore[misc]
                start = piece.stop

    def of(self, batch: slice) -> Iterator[slice]:
        """The pieces of a batch of windows, in order."""
        start, windows = batch.start, batch.stop - batch.start
        while start < batch.stop:
            stop = min(start + self._windows(windows), batch.stop)
            yield slice(start, stop)
            start = stop

    def again(self, work: Callable[[], _T], windows: int) -> _T:
        """What `work` returns. Where memory does not suffice it is called again, with smaller pieces.

        work: sets anew whatever it changes
        windows: number of windows of a batch
        """
        found: list[_T] = []
        while not self._did(lambda: found.append(work()), self._windows(windows)):
            pass
        return found[0]

    def halve(self) -> None:
        """Compute half of the windows at a time from now on, and note it."""
        self.parts *= 2
        how = "the result is the same" if self.exact else "the last bits of the result may differ from a run without it"
        self.notes = [f"memory ran short, so {self.of_what} were computed in {self.parts} pieces; {how}"]
        _log.warning("memory ran short: batches are computed in %d pieces from here on", self.parts)

    def take_notes(self) -> tuple[str, ...]:
        """Notes for the user since the last call."""
        found, self.notes = tuple(self.notes), []
        return found

    def _windows(self, windows: int) -> int:
        """Windows of a piece of a batch of so many."""
        return max(1, -(-windows // self.parts))

    def _did(self, step: Callable[[], None], windows: int) -> bool:
        """Whether a step on so many windows came through. If not, pieces are halved."""
        try:
            step()
        except (MemoryError, RuntimeError) as error:
            if windows <= 1 or not is_shortage(error):
                raise
        else:
            return True
        self.halve()  # not inside of the handler: its error holds the memory of what failed
        return False

"""The state of a run that rounds block by block: kept behind blocks and slabs of the head, and continued there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.calibration.work import Reports
from bitsmith.errors import FileError
from bitsmith.pipeline.executor import PlanWriter
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.work.folder import WorkFolder
from bitsmith.work.state import DamagedError, State

if TYPE_CHECKING:
    from bitsmith.calibration.blockwise import BlockwiseRounding

_BLOCKS, _HEAD = "blocks", "head"


class KeptBlocks:
    """Keeps and continues the rounding of one output.

    The state "blocks" holds everything behind some number of blocks: hidden states, reports, counts of routers. The
    state "head" holds the reports of the head's slabs. The rounded rows themselves are in the output's temporary files,
    whose ledger says so; a run that is to be trained keeps them in states of their own, "rows-N".
    """

    def __init__(self, work: WorkFolder, writer: PlanWriter, reports: Reports, rounding: BlockwiseRounding) -> None:
        self._work, self._writer, self._reports, self._rounding = work, writer, reports, rounding
        self._names: dict[str, None] = {}  # output names that blocks have written, in order
        self._rows: list[RoundedRows] = []  # that are not kept yet, of a run that is to be trained
        self._files = 0  # of such rows
        self._layer = 0
        self._kept_layer = -1  # of the state "blocks" on the disk

    # -- continuing

    def resume(self, take: list[RoundedRows] | None = None) -> tuple[int, int]:
        """Take over what an earlier start has kept. Returns the next block and the next slab of the head.

        take: gets the rounded rows of a run that is to be trained; None: they are in the temporary files
        """
        state = self._work.read(_BLOCKS)
        if state is None:
            return 0, 0
        with state:
            if not self._take_over(state, take):
                return 0, 0
        return self._layer, self._resume_head(take)

    def _take_over(self, state: State, take: list[RoundedRows] | None) -> bool:
        from bitsmith.calibration.kept_rows import reports_from_values

        told = state.values
        names, layer = [str(name) for name in told["tensors"]], int(told["layer"])
        rows: list[RoundedRows] | None = []
        if take is None:
            if not self._writer.take_over(names):
                self._writer.restart(names)
                self._work.words.append("tensors in the temporary files are damaged; the blocks are made again")
                return False
        else:
            rows = self._read_rows(int(told["files"]))
            if rows is None:
                return False
            take += rows
        try:
            self._rounding.resume(layer, state)
        except DamagedError as error:
            raise FileError(
                f"{self._work.path}: the kept hidden states changed while they were read ({error}); give --fresh to "
                "start again."
            ) from error
        self._names, self._files = dict.fromkeys(names), int(told["files"])
        self._layer = self._kept_layer = layer
        self._reports.by_name |= reports_from_values(told["reports"])
        self._reports.routed |= {
            int(name.partition(".")[2]): state.array(name) for name in state.names if name.startswith("routed.")
        }
        return True

    def _resume_head(self, take: list[RoundedRows] | None) -> int:
        """The next slab of the head."""
        from bitsmith.calibration.kept_rows import reports_from_values

        slabs = self._rounding.head_slabs
        state = self._work.read(_HEAD) if self._layer == self._rounding.layers and slabs else None
        if state is None:
            return 0
        with state:
            done, name = int(state.values["slabs"]), self._reports.work.outputs["output.weight"].name
            if take is None and not self._writer.take_over_rows(name, slabs[:done]):
                return 0
            if take is not None:
                rows = self._read_rows(int(state.values["files"]), self._files)
                if rows is None:
                    return 0
                take += rows
                self._files = int(state.values["files"])
            self._reports.by_name |= reports_from_values(state.values["reports"])
            return done

    def _read_rows(self, stop: int, start: int = 0) -> list[RoundedRows] | None:
        """The rows in some files; None if one of them is missing."""
        from bitsmith.calibration.kept_rows import rows_from_arrays

        found: list[RoundedRows] = []
        for number in range(start, stop):
            state = self._work.read(f"rows-{number}")
            if state is None:
                return None
            with state:
                found += rows_from_arrays(state.values["rows"], state, self._reports.work.task.formats)
        return found

    # -- keeping

    def wrote(self, name: str) -> None:
        """Remember a tensor of the output that a block has written."""
        self._names[name] = None

    def collected(self, rows: Iterable[RoundedRows]) -> None:
        """Remember rows of a run that is to be trained."""
        self._rows += rows

    def after_block(self, layer: int) -> None:
        """Keep the state behind a block, if it is time for it."""
        self._layer = layer + 1
        if self._work.pace.due:
            self._keep_blocks()

    def before_head(self) -> None:
        """Keep the state behind all blocks: states of the head need it."""
        pace = self._work.pace
        if self._rounding.head_slabs and self._kept_layer != self._layer and (pace.due_cheaply or pace.cheap):
            self._keep_blocks()

    def before_training(self) -> None:
        """Keep the rows that are not kept yet, if it is time for it: the training begins with all of them."""
        slabs = self._rounding.head_slabs
        if self._rows and self._work.pace.due:
            self.after_slab(len(slabs) - 1) if slabs else self._keep_blocks()

    def after_slab(self, slab: int) -> None:
        """Keep the state behind a slab of the head, if it is time for it."""
        pace, name = self._work.pace, self._reports.work.outputs["output.weight"].name
        if not pace.due_cheaply or self._kept_layer != self._layer:
            return
        from bitsmith.calibration.kept_rows import reports_to_values

        self._writer.keep()
        with pace.keeping():
            if not self._keep_rows():
                return
            reports = {key: said for key, said in self._reports.by_name.items() if key == name}
            values = {"slabs": slab + 1, "files": self._files, "reports": reports_to_values(reports)}
            if self._work.write(_HEAD, values, {}, small=True):
                self._work.add([{"said": f"{slab + 1} of {len(self._rounding.head_slabs)} parts of the head"}])

    def _keep_blocks(self) -> None:
        from bitsmith.calibration.kept_rows import reports_to_values

        self._writer.keep()
        with self._work.pace.keeping():
            if not self._keep_rows():
                return
            values: dict[str, Any] = {
                "layer": self._layer,
                "tensors": list(self._names),
                "reports": reports_to_values(self._reports.by_name),
                "files": self._files,
            }
            routed = {f"routed.{layer}": np.asarray(n, np.int64) for layer, n in self._reports.routed.items()}
            if self._work.write(_BLOCKS, values, {**self._rounding.kept(), **routed}):
                self._kept_layer = self._layer
                self._work.add([{"said": f"block {self._layer} of {self._rounding.layers}"}])

    def _keep_rows(self) -> bool:
        """Keep the rows since the last time in a file of their own. False if that is impossible."""
        from bitsmith.calibration.kept_rows import rows_to_arrays

        if not self._rows:
            return True
        values, arrays = rows_to_arrays(self._rows)
        if not self._work.write(f"rows-{self._files}", {"rows": values}, arrays):
            return False
        self._files += 1
        self._rows = []
        return True

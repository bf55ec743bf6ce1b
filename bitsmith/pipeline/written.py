"""What is written of an output so far, in the ledger of its work folder: one line a tensor.

A line of a tensor that is not whole says after how many rows, and what its sums were then. The same tensor may have
several lines; after another start it goes on behind one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitsmith.work.folder import WorkFolder

_HEX = 64


@dataclass(frozen=True)
class WrittenRows:
    """The first rows of a tensor, as an output holds them.

    rows: how many
    parts: number of bytes and their hash, by part
    source: hash of the stored bytes of the source; "" if the tensor is not whole
    error, weight: sums of squares, float64
    kept: whether all rows kept their weights exactly
    """

    name: str
    rows: int
    parts: Mapping[str, tuple[int, str]]
    source: str
    error: float
    weight: float
    kept: bool

    def line(self) -> dict[str, Any]:
        """The ledger's line. Floats are hexadecimal, so that sums go on exactly."""
        return {
            "tensor": self.name,
            "rows": self.rows,
            "parts": {part: list(each) for part, each in self.parts.items()},
            "source": self.source,
            "error": self.error.hex(),
            "weight": self.weight.hex(),
            "kept": self.kept,
        }

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> WrittenRows | None:
        """The rows of a line; None if it tells of something else."""
        try:
            parts = {str(part): (int(nbytes), str(sha256)) for part, (nbytes, sha256) in line["parts"].items()}
            error, weight = float.fromhex(line["error"]), float.fromhex(line["weight"])
            found = cls(
                str(line["tensor"]), int(line["rows"]), parts, str(line["source"]), error, weight, line["kept"] is True
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return found if len(found.source) in (0, _HEX) and found.rows >= 0 else None


class WrittenLedger:
    """All rows that a work folder's ledger tells of, and the lines to add to it."""

    def __init__(self, work: WorkFolder) -> None:
        self._work = work
        self._found: dict[str, list[WrittenRows]] = {}
        for line in work.ledger.lines:
            rows = WrittenRows.of(line) if "tensor" in line else None
            if rows is not None:
                self._found.setdefault(rows.name, []).append(rows)
        self._new: list[WrittenRows] = []

    def whole(self, name: str) -> WrittenRows | None:
        """The line of a tensor that is whole; None if there is none."""
        return next((each for each in reversed(self._found.get(name, [])) if each.source), None)

    def begun(self, name: str, rows: int | None = None) -> WrittenRows | None:
        """The line of a tensor after so many rows; None for the last line of one that is not whole."""
        lines = [each for each in self._found.get(name, []) if rows in (None, each.rows)]
        return lines[-1] if lines else None

    def note(self, rows: WrittenRows) -> None:
        """Remember a tensor that is whole, for the next `keep`."""
        self._new.append(rows)

    @property
    def due(self) -> bool:
        """Whether `keep` should be called now."""
        return self._work.pace.due

    def keep(self, begun: list[WrittenRows], said: str = "") -> None:
        """Write the lines of all tensors since the last time. begun: those that are not whole; said: how far it is"""
        lines = [each.line() for each in (*self._new, *begun)]
        if not lines:
            return
        with self._work.pace.keeping():
            if self._work.add([*lines, *([{"said": said}] if said else [])]):
                self._new = []

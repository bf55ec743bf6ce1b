"""What the C++ core chose for this processor: `bitsmith bench --explain` shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ReadingChoice:
    """The way to read the packed matrices, or the float matrices, of a model.

    kind: "packed" or "floats"
    layout: of the matrices that were measured
    chosen: number of the way, an index of the core's `readings`
    rates: bytes a second that each way took in; empty if nothing was measured
    origin: "measured", "remembered", "named" by the user, or "default"
    """

    kind: str
    layout: str
    chosen: int
    rates: tuple[float, ...]
    origin: str


@dataclass(frozen=True)
class CoreChoices:
    """What the core runs on here.

    isa: instruction set
    isas: all that are available, poorest first
    prompts: how products of several rows are taken
    readings: how matrices are read for a single row
    ways: the core's ways of reading: bytes fetched ahead into the first-level cache, into the second-level cache, rows
        of a float matrix that are read together
    """

    isa: str
    isas: tuple[str, ...]
    prompts: str
    readings: tuple[ReadingChoice, ...]
    ways: tuple[tuple[int, int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Numbers and strings, ready for JSON."""
        return asdict(self)

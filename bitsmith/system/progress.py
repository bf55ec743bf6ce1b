"""Progress reports of long work: through one callback, never by printing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of a long task.

    stage: the present stage ("load", "quantize", "verify", "evaluate")
    done, total: in `unit`s
    unit: "weights", "B" (bytes), "layers", "windows"
    detail: the present tensor or file
    left: seconds until the whole run ends, where that is known; None: not known
    """

    stage: str
    done: int
    total: int
    unit: str
    detail: str = ""
    left: float | None = None


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The default callback: reports nothing."""

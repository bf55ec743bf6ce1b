"""How work below the command line reports what it is doing: through one callback, never by printing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of a long task.

    stage: what is being done ("quantize", "verify", "evaluate")
    done, total: in `unit`s
    unit: "B" (bytes), "windows", "tokens"
    detail: the tensor or file at hand
    """

    stage: str
    done: int
    total: int
    unit: str
    detail: str = ""


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The default callback: reports nothing."""

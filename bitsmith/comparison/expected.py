"""What a comparison costs, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.comparison.config import CompareConfig
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.system.machine import cores
from bitsmith.system.sizes import human_bytes, human_seconds

_RATE = 50e9  # floating-point operations a second of one core in the exact kernel; a guess, until a run has measured it


@dataclass(frozen=True)
class Expected:
    """What a comparison will do.

    to_make: formats that do not exist yet
    make_seconds: time to make them
    passes: number of windows that models have still to be run over, the original's among them
    measure_seconds: time of these passes
    disk: bytes of the original's predictions, if they have still to be written
    candidates: number of candidates
    windows: number of windows of all texts
    """

    to_make: tuple[str, ...]
    make_seconds: float
    passes: int
    measure_seconds: float
    disk: int
    candidates: int
    windows: int

    def lines(self) -> list[str]:
        """The same in words."""
        if not self.to_make and not self.passes:
            return [f"all {self.candidates} candidates are measured already"]
        lines = [f"{self.candidates} candidates, {self.windows} windows each"]
        if self.to_make:
            lines.append(f"to make: {', '.join(self.to_make)} (about {human_seconds(self.make_seconds)})")
        if self.passes:
            disk = f"; the original's predictions take {human_bytes(self.disk)} of disk" if self.disk else ""
            lines.append(f"to measure: {self.passes} windows (about {human_seconds(self.measure_seconds)}){disk}")
        return lines


def machine_rate(checkpoint: Checkpoint, config: CompareConfig) -> float:
    """Seconds of one window of the original, before any was measured: right within a factor of about two."""
    weights = sum(info.parameters for info in checkpoint.source.tensors.values())
    return 2.0 * weights * config.context / (_RATE * (config.threads or cores()))

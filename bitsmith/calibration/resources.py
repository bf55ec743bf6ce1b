"""Resources: limits on memory, threads and device for calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitsmith.calibration.pieces import Pieces


@dataclass(frozen=True)
class Resources:
    """Limits of this machine.

    memory: bytes for all hidden states together; larger ones go to disk; None: half of the available memory
    threads: number of torch threads, set for the whole process; None: torch's present setting
    device: "cpu", "cuda" or "cuda:N"
    pieces: how batches of windows are computed, for all passes of the run
    steps: the same for the steps of learned rounding and trainings, whose sums of gradients depend on it
    """

    memory: int | None = None
    threads: int | None = None
    device: str = "cpu"
    pieces: Pieces = field(default_factory=Pieces)
    steps: Pieces = field(default_factory=lambda: Pieces(exact=False, of_what="steps of learned rounding and training"))

    def __post_init__(self) -> None:
        self.pieces.exact = self.device == "cpu"  # elsewhere the size of a product may choose its kernel

    def take_notes(self) -> tuple[str, ...]:
        """Notes for the user about memory that ran short, since the last call."""
        return (*self.pieces.take_notes(), *self.steps.take_notes())

"""The stages of a calibrated run that go block by block, and how long each is expected to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitsmith.calibration.method import Method
from bitsmith.pipeline.outputs import Output


@dataclass(frozen=True)
class Phase:
    """A stage, as progress names it, and its expected seconds. Only ratios of these are used."""

    stage: str
    seconds: float


def phases_of(outputs: Sequence[Output], threads: int) -> tuple[Phase, ...]:
    """The phases of a run, in order; none if it has several outputs, or is not rounded block by block only."""
    if len(outputs) != 1:
        return ()
    (output,) = outputs
    if output.prepared is None or not output.method.needs_text or output.training is not None:
        return ()

    def seconds(method: Method, table: bool = False) -> float:
        return output.calibration_cost(method, output.effort, threads, table=table).seconds

    alone = Method(output.method.rounder)
    rounding = seconds(alone)
    found = [Phase("calibrate", seconds(output.method) - rounding)] if output.method.transform else []
    if output.assignment.checkpoint.config.tied and output.rounds_embedding(output.method):
        found.append(Phase("calibrate", seconds(alone, table=True) - rounding))
    return (*found, Phase(output.method.rounder, rounding))

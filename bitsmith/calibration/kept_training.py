"""The state of a training end to end behind some step, kept so that another start goes on there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.adam import Adam
from bitsmith.work.folder import WorkFolder

_STATE = "training"


class Trainable(Protocol):
    """What is trained."""

    def state(self) -> list[Tensor]:
        """A copy of everything that is trained."""
        ...

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go back to a state."""
        ...


@dataclass(frozen=True)
class TrainedSoFar:
    """Where a training is.

    step: number of steps that are done
    before, least: divergence of the start and of the best state, nats a token
    found: the step that gave the best state
    best: the best state
    """

    step: int
    before: float
    least: float
    found: int
    best: list[Tensor]


def keep_training(work: WorkFolder, student: Trainable, optimizer: Adam, so_far: TrainedSoFar) -> None:
    """Keep the state behind a step."""
    with work.pace.keeping():
        arrays = {f"best.{at}": _array(each) for at, each in enumerate(so_far.best)}
        arrays |= {f"now.{at}": _array(each) for at, each in enumerate(student.state())}
        values = {name: getattr(so_far, name) for name in ("step", "before", "least", "found")}
        if work.write(_STATE, values, {**arrays, **optimizer.kept()}):
            work.add([{"said": f"step {so_far.step} of the training"}])


def read_training(work: WorkFolder, student: Trainable, optimizer: Adam) -> TrainedSoFar | None:
    """Take over what an earlier start has kept; None if there is nothing."""
    state = work.read(_STATE)
    if state is None:
        return None
    with state:
        count = len(student.state())
        best, now = ([torch.from_numpy(state.array(f"{kind}.{at}")) for at in range(count)] for kind in ("best", "now"))
        student.restore(now)
        optimizer.restore({name: state.array(name) for name in state.names if name.startswith("adam.")})
        told = state.values
        return TrainedSoFar(int(told["step"]), float(told["before"]), float(told["least"]), int(told["found"]), best)


def _array(value: Tensor) -> np.ndarray:
    found: np.ndarray = value.detach().cpu().numpy()
    return found

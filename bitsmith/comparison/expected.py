"""What a comparison costs, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.comparison.asking import Todo
from bitsmith.comparison.config import CompareConfig
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.system.core import core
from bitsmith.system.machine import cores
from bitsmith.system.sizes import human_bytes, human_seconds

_RATES = {"avx512": 140e9, "avx2": 70e9, "avxvnni": 70e9}  # flop/s of a core in the exact kernel, by instruction set
_USUAL_RATE = 40e9  # of others, and of torch
STEP = 12.0  # a step of generation takes as long as so many tokens of a window: it waits for memory
_TORCH = 2.0  # how much longer a window takes in torch, for the noise floor
_WEIGHT = 7e-9  # seconds to compare one weight with the original's
_SPEED_TOKENS = 8192  # of a window, that take as long as measuring the speed


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
    todo: what is still to be asked and written
    ask_seconds, write_seconds: time of that; without lm-eval's tasks
    more_seconds: time of the noise floor, of the errors of matrices, and of measuring speed
    """

    to_make: tuple[str, ...]
    make_seconds: float
    passes: int
    measure_seconds: float
    disk: int
    candidates: int
    windows: int
    todo: Todo
    ask_seconds: float
    write_seconds: float
    more_seconds: float

    @property
    def seconds(self) -> float:
        """Time of all that can be foreseen."""
        return sum((self.make_seconds, self.measure_seconds, self.ask_seconds, self.write_seconds, self.more_seconds))

    def lines(self) -> list[str]:
        """The same in words."""
        todo = self.todo
        if not (self.seconds or todo.unknown):
            return [f"all {self.candidates} candidates are measured already"]
        lines = [f"{self.candidates} candidates, {self.windows} windows each"]
        if self.to_make:
            lines.append(f"to make: {', '.join(self.to_make)} (about {human_seconds(self.make_seconds)})")
        if self.passes:
            disk = f"; the original's predictions take {human_bytes(self.disk)} of disk" if self.disk else ""
            lines.append(f"to measure: {self.passes} windows (about {human_seconds(self.measure_seconds)}){disk}")
        if todo.questions:
            lines.append(f"to ask: {todo.questions:,} questions (about {human_seconds(self.ask_seconds)})")
        if todo.texts:
            lines.append(f"to write: {todo.texts} texts (about {human_seconds(self.write_seconds)})")
        if self.more_seconds >= 1:
            lines.append(f"noise floor, matrices, speed: about {human_seconds(self.more_seconds)}")
        whole = f"in all about {human_seconds(self.seconds)}"
        if todo.unknown:
            whole += f", and what lm-eval takes for {', '.join(todo.unknown)}, which is not known beforehand"
        return [*lines, whole]


def machine_rate(checkpoint: Checkpoint, config: CompareConfig) -> float:
    """Seconds of one window of the original, before any was measured: right within a factor of about two."""
    weights = sum(info.parameters for info in checkpoint.source.tensors.values())
    return 2.0 * weights * config.context / (_flops() * (config.threads or cores()))


def _flops() -> float:
    module = core()
    isa = "" if module is None else str(module.isa())
    return next((rate for name, rate in _RATES.items() if isa.startswith(name)), _USUAL_RATE)


def further_seconds(
    checkpoint: Checkpoint, config: CompareConfig, *, floor_windows: int, models: int, candidates: int, window: float
) -> float:
    """Time of what is measured beside windows and questions.

    floor_windows: windows of the noise floor, of all its roundings; 0 if it is known
    models, candidates: number of those whose speed is measured, and whose matrices are still to be
    window: seconds of a window
    """
    weights = sum(info.parameters for info in checkpoint.source.tensors.values())
    speed = models * _SPEED_TOKENS / config.context * window if config.speed else 0.0
    layers = candidates * weights * _WEIGHT if config.layers else 0.0
    return floor_windows * _TORCH * window + speed + layers

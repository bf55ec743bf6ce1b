"""The course of a run: its first real block corrects what was predicted, and errors of memory name the step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bitsmith.calibration.need import Need
from bitsmith.errors import ResourceError
from bitsmith.pipeline.phases import Phase
from bitsmith.pipeline.result import Quantized
from bitsmith.system.pressure import MemoryNow, Room, is_shortage, memory_now
from bitsmith.system.progress import Progress, Report
from bitsmith.system.sizes import human_bytes, human_seconds

_log = logging.getLogger(__name__)

Refusal = Callable[[Need, tuple[Room, int]], str]  # says why a run does not go on, and what would fit


@dataclass(frozen=True)
class Corrected:
    """What the first blocks of a stage say of all of it.

    seconds: of the stage, by its first block, and by its second as soon as that is done: the first also warms up
    cpu_seconds: the same as processor time
    memory: bytes, the peak that is now expected
    """

    seconds: float
    cpu_seconds: float
    memory: int


@dataclass(frozen=True)
class _Mark:
    """A moment: number of blocks that were done, clock and processor time."""

    done: int
    clock: float
    worked: float


@dataclass
class _Stage:
    """A stage that goes block by block.

    began: when it began
    warm: after its first block
    done, seconds: blocks after which it was last looked at, and the clock time of the whole stage as seen there
    """

    began: _Mark
    warm: _Mark | None = None
    done: int = 0
    seconds: float = 0.0

    def whole(self, now: _Mark, total: int) -> tuple[float, float]:
        """Clock and processor time of the whole stage. The first block counts once: it also compiles kernels."""
        begun, since = self.began, self.warm or self.began
        count = now.done - since.done
        passed = since.clock - begun.clock, since.worked - begun.worked
        each = (now.clock - since.clock) / count, (now.worked - since.worked) / count
        return passed[0] + each[0] * (total - since.done), passed[1] + each[1] * (total - since.done)


class Course:
    """Passes reports on. After the first block of a stage it corrects the prediction.

    It raises ResourceError there if the memory of the other blocks would not be free.
    """

    def __init__(
        self, report: Report, need: Need, refusal: Refusal, *, phases: Sequence[Phase] = (), force: bool = False
    ) -> None:
        """phases: stages that follow each other, so that the time left is the run's; force: go on whatever it needs"""
        self._report, self._need, self._refusal, self._force = report, need, refusal, force
        self._phases = tuple(phases)  # those that have not begun
        self._behind = 0.0  # expected time of the phases behind the present stage, in times of this stage
        self._stages: dict[str, _Stage] = {}
        self.corrected: dict[str, Corrected] = {}
        self.latest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Take a report."""
        self.latest = progress
        if progress.unit == "blocks":
            progress = self._blocks(progress)
        self._report(progress)

    @property
    def expected_memory(self) -> int:
        """Bytes of the peak that was predicted."""
        return self._need.peak

    @property
    def step(self) -> str:
        """The present step, in words."""
        if self.latest is None:
            return "the start"
        detail = f" ({self.latest.detail})" if self.latest.detail else ""
        return f"the step '{self.latest.stage}'{detail}"

    def _blocks(self, progress: Progress) -> Progress:
        """The report, with what is expected now. The first that comes after a block checks the memory."""
        stage, now = self._stages.get(progress.stage), _Mark(progress.done, time.monotonic(), time.process_time())
        if stage is None or progress.done < max(stage.began.done, stage.done):  # the first, or that of the next output
            self._stages[progress.stage] = _Stage(now)
            self.corrected.pop(progress.stage, None)
            self._enter(progress.stage)
            return progress
        if progress.done in (stage.began.done, progress.total):
            return progress
        if progress.done == stage.done:  # a step within a block
            return self._told(progress, stage, now)
        seconds, worked = stage.whole(now, progress.total)
        stage.done, stage.seconds = progress.done, seconds
        if stage.warm is None:
            stage.warm = now
            peak = self._check(progress.stage)
            self.corrected[progress.stage] = Corrected(seconds, worked, peak)
        elif now.done == stage.warm.done + 1:
            self.corrected[progress.stage] = replace(
                self.corrected[progress.stage], seconds=seconds, cpu_seconds=worked
            )
        return self._told(progress, stage, now)

    def _enter(self, stage: str) -> None:
        """Begin a stage: look up how long the phases behind it take beside it."""
        self._behind = 0.0
        for at, phase in enumerate(self._phases):
            if phase.stage == stage:
                self._phases = self._phases[at + 1 :]
                if phase.seconds > 0:
                    self._behind = sum(each.seconds for each in self._phases) / phase.seconds
                return

    def _told(self, progress: Progress, stage: _Stage, now: _Mark) -> Progress:
        """The report, with the time that is left of the run."""
        least = stage.seconds * max(progress.total - progress.done - 1, 0) / progress.total  # of blocks that wait
        left = max(stage.began.clock + stage.seconds - now.clock, least) + self._behind * stage.seconds
        said = f"{human_seconds(left)} left" + (" in all" if self._behind else "")
        return replace(progress, detail=f"{progress.detail}, {said}".removeprefix(", "), left=left)

    def _check(self, stage: str) -> int:
        """The peak that is expected after a stage's first block. Raises ResourceError if it would not be free."""
        now = memory_now()
        own = now.peak > self._need.now.peak  # else the process had its peak before the run
        peak = now.peak if own else max(now.resident, min(self._need.peak, now.peak))
        peak = max(peak, self._need.peak if self._need.after_blocks else 0)
        _log.info("%s: peak memory about %s, expected were %s", stage, human_bytes(peak), human_bytes(self._need.peak))
        need = replace(self._need, peak=peak, threads=-1, now=now)
        found = None if self._force else need.missing()
        if found is not None:
            raise ResourceError(f"after the first block of '{stage}': {self._refusal(need, found)}")
        return peak


def with_corrections(done: Sequence[Quantized], course: Course) -> list[Quantized]:
    """The results, with what the first blocks said."""
    corrected = {name: each.seconds for name, each in course.corrected.items()}
    return [replace(each, corrected_seconds=corrected) for each in done]


@contextmanager
def naming_step(course: Course) -> Iterator[None]:
    """Within it, memory that cannot be had is a ResourceError that names the step and says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_shortage(error):
            raise
        now: MemoryNow = memory_now()
        raise ResourceError(
            f"memory ran out in {course.step}; bitsmith had {human_bytes(now.resident)} of the "
            f"{human_bytes(course.expected_memory)} that were expected. No half-written file was left. Close other "
            "programs, raise the limit (a control group, ulimit -v), or give fewer --threads, a smaller --memory or "
            "fewer --calibration-tokens."
        ) from error

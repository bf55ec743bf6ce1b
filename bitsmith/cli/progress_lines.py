"""Progress where stderr is no terminal: one line now and then, for logs and batch systems."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bitsmith.system.progress import Progress, Report
from bitsmith.system.sizes import human_bytes, human_seconds

FIRST = 5.0  # seconds until the first line
PAUSES = (10.0, 15.0, 20.0, 30.0)  # seconds between the lines; the last one repeats


class ProgressLines:
    """Takes reports, and writes the latest as one line: "quantize: 45 %, 1.2 of 2.7 G weights, about 3 min left".

    now: gives the time in seconds
    """

    def __init__(self, write: Callable[[str], object], now: Callable[[], float] = time.monotonic) -> None:
        self._write, self._now = write, now
        self._latest: Progress | None = None
        self._ended: Progress | None = None  # the end of a stage that a line has told
        self._begun: dict[str, tuple[float, int]] = {}  # stage -> when it began, and what was done then
        self._moved: dict[str, tuple[float, int]] = {}  # stage -> the same for the last step that ended
        self._told = now()  # when the latest report came
        self._lines = 0
        self._due = now() + FIRST

    def __call__(self, progress: Progress) -> None:
        """Take a report; write a line if one is due."""
        begun = self._begun.get(progress.stage)
        if begun is None or progress.done < begun[1]:  # stages take turns; one that begins again starts anew
            self._begun[progress.stage] = self._moved[progress.stage] = self._now(), progress.done
        if progress.done != self._moved[progress.stage][1]:
            self._moved[progress.stage] = self._now(), progress.done
        self._latest, self._told = progress, self._now()
        self.tick()

    def tick(self) -> float:
        """Write a line if one is due. Returns the seconds until the next one."""
        now = self._now()
        if now >= self._due and self._latest is not None:
            if self._latest is not self._ended:
                self._write(self.line(self._latest) + "\n")
            if self._latest.done >= self._latest.total > 0:
                self._ended = self._latest
            self._due = now + PAUSES[min(self._lines, len(PAUSES) - 1)]
            self._lines += 1
        return max(self._due - now, 0.1)

    def line(self, progress: Progress) -> str:
        """A report as a line, with the time left if it can be told."""
        words = [f"{progress.stage}:"]
        if progress.total > 0:
            done, total = _amounts(progress)
            words.append(f"{100 * progress.done / progress.total:.0f} %, {done} of {total}".rstrip())
        left = self._left(progress)
        if left is not None:
            words[-1] += f", about {human_seconds(left)} left"
        elif progress.detail:
            words[-1] += f", {progress.detail}" if len(words) > 1 else f" {progress.detail}"
        return " ".join(words)

    def _left(self, progress: Progress) -> float | None:
        """Seconds left, if they can be told: the run's own figure, or by the steps that ended of this stage.

        What has passed since the report, or since the last step, is taken off.
        """
        if progress.left is not None:
            return max(progress.left - (self._now() - self._told), 0.0)
        since, before = self._begun.get(progress.stage, (self._now(), progress.done))
        ended, _ = self._moved.get(progress.stage, (since, before))
        gone, missing = progress.done - before, progress.total - progress.done
        if gone <= 0 or ended <= since or missing <= 0:
            return None
        step = (ended - since) / gone
        return max(step * missing - (self._now() - ended), step * (missing - 1))


def _amounts(progress: Progress) -> tuple[str, str]:
    """What is done and the total, short."""
    if progress.unit in ("B", "of the text"):
        of_what = "" if progress.unit == "B" else f" {progress.unit}"
        return human_bytes(progress.done), human_bytes(progress.total) + of_what
    if progress.total < 100_000:
        return str(progress.done), f"{progress.total} {progress.unit}"
    scale, letter = (1e9, " G") if progress.total >= 1e9 else (1e6, " M")
    return f"{progress.done / scale:.2f}", f"{progress.total / scale:.2f}{letter} {progress.unit}"


@contextmanager
def progress_lines() -> Iterator[Report]:
    """A callback that writes lines to stderr, also while a long step reports nothing."""
    stop = threading.Event()
    lock = threading.Lock()
    lines = ProgressLines(_to_stderr)

    def report(progress: Progress) -> None:
        with lock:
            lines(progress)

    def watch() -> None:
        pause = FIRST
        while not stop.wait(pause):
            with lock:
                pause = lines.tick()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield report
    finally:
        stop.set()
        watcher.join()


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()

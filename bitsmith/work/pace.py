"""Pace: how often a run keeps its state, so that keeping takes a small share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAST_SECONDS = 0.5  # of work between two states
SHARE = 0.02  # of the time may go into keeping state


class Pace:
    """Says when enough work has been done since the last state for another one to be worth its time."""

    def __init__(
        self, *, least: float | None = None, share: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """least: seconds of work between two states; share: of the time that may go into keeping state"""
        self._least = LEAST_SECONDS if least is None else least
        self._share = SHARE if share is None else share
        self._clock = clock
        self._last = clock()
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether state should be kept now."""
        return self._clock() - self._last >= max(self._least, self._cost / self._share)

    @property
    def due_cheaply(self) -> bool:
        """The same for state that costs little, whatever the last one did."""
        return self._clock() - self._last >= self._least

    @property
    def cheap(self) -> bool:
        """Whether keeping state took hardly any time so far."""
        return self._cost < self._least * self._share

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Around the keeping of state: it is measured, and the next one becomes due later if it took long."""
        start = self._clock()
        try:
            yield
        finally:
            self._last = self._clock()
            self._cost = self._last - start

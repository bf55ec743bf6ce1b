"""Stop texts: holds back what may become one, and finds where an answer ends."""

from __future__ import annotations


class StopWatch:
    """Passes text on up to the first stop.

    found: the stop that was found; "" as long as none was
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = ""

    def feed(self, text: str) -> str:
        """The text that is certain to come before any stop."""
        if self.found:
            return ""
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        first = min(((at, stop) for at, stop in places if at >= 0), default=None)
        if first is not None:
            at, self.found = first
            passed, self._held = self._held[:at], ""
            return passed
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return passed

    def finish(self) -> str:
        """What was held back, at the end of a text without a stop."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """The most letters at the end of `text` that `stop` begins with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

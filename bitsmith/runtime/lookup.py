"""Guesses of the next tokens from the text so far, for speculation without a second model.

Where the last tokens stood before, what followed them there may follow again ("prompt lookup": Saxena 2023; "n-gram"
in other programs). A step then computes the guesses beside the last token, and drawing goes on as far as they come
true. Nothing but the number of steps changes: every token is drawn from the logits that it would have without guesses.
"""

from __future__ import annotations

from collections.abc import Sequence

_LENGTHS = (4, 3)  # tokens that must have stood together before; the longer are looked for first
_DOUBT = 0.25  # with a smaller share of guesses that came true, few are tried
_PAUSE = 8  # then, tokens between two tries
_MEMORY = 0.8  # weight of what is known when a guess comes true or not


class Lookup:
    """The guesses for one text. It reads `tokens`, to which others append.

    most: guesses at a time, at most
    """

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        self._tokens = tokens
        self._most = most
        self._ends: dict[tuple[int, ...], int] = {}  # where what follows some tokens begins, by those tokens
        self._known = 0
        self._trust = 0.5  # share of guesses that came true lately
        self._rest = 0
        self.guessed = self.right = 0

    def guess(self, room: int) -> list[int]:
        """The next tokens, `room` at most; [] where nothing is known or guesses fail too often."""
        start = self._found()
        if self._rest > 0:
            self._rest -= 1
            return []
        if start is None or room < 1:
            return []
        count = max(1, round(self._most * self._trust)) if self._trust >= _DOUBT else 1
        period = len(self._tokens) - start  # what ends with the text goes on from its own beginning
        return [self._tokens[start + i % period] for i in range(min(count, room))]

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many of the last guesses came true: the first `right` of them."""
        if not guessed:
            return
        self.guessed += guessed
        self.right += right
        self._trust = _MEMORY * self._trust + (1 - _MEMORY) * right / guessed
        if self._trust < _DOUBT and not right:
            self._rest = _PAUSE

    def _found(self) -> int | None:
        """Where the text went on the last time that its last tokens stood in it; None if they did not."""
        tokens, size = self._tokens, len(self._tokens)
        for end in range(self._known + 1, size):  # what ends at the last token has no end yet
            for length in _LENGTHS:
                if end >= length:
                    self._ends[tuple(tokens[end - length : end])] = end
        self._known = max(self._known, size - 1)
        for length in _LENGTHS:
            place = self._ends.get(tuple(tokens[size - length : size])) if size >= length else None
            if place is not None:
                return place
        return None

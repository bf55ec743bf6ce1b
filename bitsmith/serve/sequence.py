"""One text on its way: from its place in the queue to its last token."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from bitsmith.models.tokenizer import Tokenizer
from bitsmith.runtime.lookup import Lookup
from bitsmith.serve.drawer import Drawer
from bitsmith.serve.job import Job
from bitsmith.serve.stopping import StopWatch
from bitsmith.serve.wish import Done, Ended, Event, Failed, Likely, Piece, Wish

Deliver = Callable[[Event], None]


class Sequence(Job):
    """The state of one answer.

    deliver: called with what comes, from the engine's thread
    """

    def __init__(self, wish: Wish, deliver: Deliver) -> None:
        super().__init__(wish.prompt)
        self.wish = wish
        self.deliver = deliver

    def start(self, drawer: Drawer, tokenizer: Tokenizer, *, lookup: int = 0) -> None:
        """Be ready to draw. lookup: tokens guessed at a time, at most"""
        self._drawer = drawer
        self._text = tokenizer.stream(special=self.wish.special, continues=len(self.wish.prompt) > 1)
        self._shown = tokenizer.size
        self._stops = StopWatch(self.wish.stops)
        self._lookup = Lookup(self.tokens, lookup) if lookup else None
        self._guess: list[int] = []

    @property
    def drawn(self) -> int:
        """Number of tokens drawn."""
        return len(self.tokens) - len(self.wish.prompt)

    def guess(self, context: int) -> list[int]:
        """See `Job`. They are checked by the next `take`."""
        if self._lookup is None:
            return []
        most = context if self.wish.max_tokens is None else min(context, len(self.wish.prompt) + self.wish.max_tokens)
        self._guess = self._lookup.guess(most - len(self.tokens) - 1)
        return self._guess

    def take(self, logits: np.ndarray, ends: Collection[int], context: int) -> tuple[int, int, bool]:
        """Draw the next tokens from logits float32 [1 + guesses, vocab], as far as the guesses come true.

        The client is told. Returns how many were drawn, how many guesses came true, and whether the answer goes on.
        The cache then holds what is needed up to `fed`, or more.
        """
        guess, self._guess = self._guess, []
        right, goes_on, first = 0, True, len(self.tokens)
        for row, expected in zip(logits, [*guess, None], strict=True):
            goes_on = self._take_one(row, ends, context)
            if not goes_on or self.tokens[-1] != expected:
                break
            right += 1
        if self._lookup is not None:
            self._lookup.learn(len(guess), right)
        self.fed = first + right
        return len(self.tokens) - first, right, goes_on

    def _take_one(self, logits: np.ndarray, ends: Collection[int], context: int) -> bool:
        """Draw the next token from logits float32 [vocab]. Whether the answer goes on."""
        drawn = self._drawer.draw(logits)
        token = drawn[0].token
        self.tokens.append(token)
        ended = token in ends
        text = "" if ended or token >= self._shown else self._text.feed(token)
        passed = self._stops.feed(text)
        why = self._why(ended, context)
        if why in ("end", "length", "context"):
            passed += self._stops.feed(self._text.finish()) + self._stops.finish()
        self._tell(passed, drawn if not ended else None)
        if why is not None:
            self.finish(why)
        return why is None

    def finish(self, why: Ended) -> None:
        """See `Job`."""
        stop = self._stops.found if self.slot is not None else ""
        self.deliver(Done(why, len(self.wish.prompt), self.drawn, self.reused, stop))

    def fail(self, words: str) -> None:
        """See `Job`."""
        self.deliver(Failed(words))

    def _why(self, ended: bool, context: int) -> Ended | None:
        most = self.wish.max_tokens
        if self._stops.found:
            return "stop"
        if ended or self._drawer.finished:
            return "end"
        if most is not None and self.drawn >= most:
            return "length"
        return "context" if len(self.tokens) >= context else None

    def _tell(self, text: str, drawn: tuple[Likely, tuple[Likely, ...]] | None) -> None:
        wanted = self.wish.drawing.top_logprobs is not None and drawn is not None
        if text or wanted:
            self.deliver(Piece(text, (drawn,) if wanted and drawn is not None else ()))

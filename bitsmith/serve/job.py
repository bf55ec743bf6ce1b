"""What the engine works on: one text in a slot of the cache, fed in pieces."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from bitsmith.serve.wish import Ended


class Job:
    """A text on its way.

    tokens: the prompt, and what was drawn behind it
    fed: number of tokens that the cache holds
    reused: of these, what it held already
    slot: where in the cache; None while it waits
    cancelled: set by whoever no longer wants it
    keeps: whether tokens that a slot holds already need not be computed again
    """

    keeps = True

    def __init__(self, prompt: Tokens[int]) -> None:
        self.tokens = list(prompt)
        self.fed = self.reused = 0
        self.slot: int | None = None
        self.cancelled = False

    @property
    def drawn(self) -> int:
        """Number of tokens drawn."""
        return 0

    @property
    def waiting(self) -> list[int]:
        """Tokens that the cache does not hold."""
        return self.tokens[self.fed :]

    def ends_with(self, tokens: list[int]) -> bool:
        """Whether these are all that the cache does not hold."""
        return self.fed + len(tokens) == len(self.tokens)

    def guess(self, context: int) -> list[int]:
        """Guesses of the tokens that come behind those of `waiting`."""
        return []

    def take_slot(self, slot: int, held: int) -> None:
        """The slot holds the first `held` tokens."""
        self.slot, self.fed, self.reused = slot, held, held

    def finish(self, why: Ended) -> None:
        """Tell the client that nothing more comes."""
        raise NotImplementedError

    def fail(self, words: str) -> None:
        """Tell the client that it ends with an error."""
        raise NotImplementedError

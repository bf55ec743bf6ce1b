"""Which slot of the cache a text gets: the one that already holds most of its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitsmith.runtime.base import AnyCache


class Slots:
    """The slots of a cache, and the tokens that each holds. A slot that is free keeps what it holds for the next text.

    Of the tokens of a slot, the cache holds the first `cache.lengths[slot]`.
    """

    def __init__(self, cache: AnyCache) -> None:
        self.cache = cache
        self._tokens: list[list[int]] = [[] for _ in range(cache.batch)]
        self._free = list(range(cache.batch))  # the one to give away first comes first

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self, tokens: list[int], *, keeps: bool = True) -> tuple[int, int]:
        """A free slot for a text, and how many of its first tokens the slot holds: all but one at most.

        tokens: the prompt; whoever draws further ones appends them
        keeps: whether what a slot holds is of use; else a slot is emptied
        The beginning that another slot holds is copied where that saves more.
        """
        shared = [self._shared(slot, tokens) if keeps else 0 for slot in range(self.cache.batch)]
        slot = max(self._free, key=lambda each: shared[each])  # the first of equals
        best = max(range(len(shared)), key=lambda each: shared[each])
        if shared[best] > shared[slot]:
            self.cache.copy_slot(best, slot, shared[best])
        else:
            self.cache.truncate(slot, shared[slot])
        self._free.remove(slot)
        self._tokens[slot] = tokens
        return slot, int(self.cache.lengths[slot])

    def release(self, slot: int, *, worth: bool = True) -> None:
        """The slot's text has ended. worth: whether a further text may begin like it; if not, it is given away first"""
        self._tokens[slot] = self._tokens[slot][: int(self.cache.lengths[slot])]
        self._free.insert(len(self._free) if worth else 0, slot)

    def empty(self, slot: int) -> None:
        """Forget what a slot holds."""
        self.cache.truncate(slot, 0)
        self._tokens[slot] = []

    def _shared(self, slot: int, prompt: Sequence[int]) -> int:
        """How many tokens a prompt begins with that a slot holds and can go back to, all but its last at most."""
        held = self._tokens[slot]
        n = min(int(self.cache.lengths[slot]), len(prompt) - 1, len(held))
        if n < 1:
            return 0
        differ = np.flatnonzero(np.asarray(held[:n]) != np.asarray(prompt[:n]))
        return self.cache.reusable(slot, int(differ[0]) if len(differ) else n)

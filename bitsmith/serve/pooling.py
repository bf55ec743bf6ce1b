"""A text whose last hidden states are pooled: one embedding."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens

import numpy as np

from bitsmith.serve.job import Job
from bitsmith.serve.wish import Done, Ended, Failed, Pooled, PoolEvent, Pooling


class PoolJob(Job):
    """Pools the states behind the final norm as they come.

    deliver: called once, from the engine's thread
    pooling: of all tokens, or of the last one
    """

    def __init__(self, ids: Tokens[int], pooling: Pooling, deliver: Callable[[PoolEvent], None]) -> None:
        super().__init__(ids)
        self.deliver = deliver
        self.keeps = pooling == "last"  # the mean needs the states of all tokens, and a slot holds none
        self._pooling = pooling
        self._sum: np.ndarray | None = None  # float64 [hidden]

    def pool(self, states: np.ndarray) -> bool:
        """Count in the states of the next tokens, float32 [n, hidden]. Whether further tokens wait.

        Added up one after the other in float64, so that the result does not depend on how the text was cut.
        """
        self.fed += len(states)
        wide = states.astype(np.float64)
        if self._pooling == "last":
            self._sum = wide[-1]
        else:
            rows = wide if self._sum is None else np.concatenate([self._sum[None], wide])
            self._sum = np.add.reduce(rows, axis=0)
        if self.fed < len(self.tokens):
            return True
        self.deliver(Pooled((self._sum / max(float(np.linalg.norm(self._sum)), 1e-12)).astype(np.float32)))
        return False

    def finish(self, why: Ended) -> None:
        """See `Job`."""
        self.deliver(Done(why, len(self.tokens), 0, self.reused))

    def fail(self, words: str) -> None:
        """See `Job`."""
        self.deliver(Failed(words))

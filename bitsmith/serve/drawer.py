"""Draws the tokens of one sequence: penalties, biases, grammar, sampling, log-probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np

from bitsmith.runtime.sampler import Sampler
from bitsmith.serve.grammar import Matcher
from bitsmith.serve.wish import Drawing, Likely, Wish


class Drawer:
    """The drawn tokens of one sequence.

    matcher: follows the grammar; None without one
    ends: tokens that end the text; allowed where the grammar is fulfilled
    """

    def __init__(self, wish: Wish, matcher: Matcher | None, ends: Collection[int]) -> None:
        self._drawing: Drawing = wish.drawing
        self._sampler = Sampler(wish.drawing.sampling, wish.number, prompt=wish.prompt)
        self._counts: Counter[int] = Counter()
        self._matcher = matcher
        self._ends = frozenset(ends)

    @property
    def finished(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._matcher is not None and self._matcher.finished

    def draw(self, logits: np.ndarray) -> tuple[Likely, tuple[Likely, ...]]:
        """The next token for logits float32 [vocab], and the likeliest ones.

        Log-probabilities that are not asked for are NaN. Raises TensorError where a logit is NaN or Inf, UsageError
        where the grammar fails.
        """
        token = self._sampler(self._changed(logits))
        self._counts[token] += 1
        if self._matcher is not None and token not in self._ends:
            self._matcher.take(token)
        if self._drawing.top_logprobs is None:
            return Likely(token, float("nan")), ()
        return _logprobs(logits, token, self._drawing.top_logprobs)

    def _changed(self, logits: np.ndarray) -> np.ndarray:
        """Logits behind penalties, biases and the grammar."""
        drawing = self._drawing
        penalized = self._counts and (drawing.frequency_penalty or drawing.presence_penalty)
        if not (penalized or drawing.bias or self._matcher):
            return logits
        changed = np.array(logits, np.float64)
        if penalized:
            ids = np.fromiter(self._counts, np.int64)
            times = np.fromiter(self._counts.values(), np.float64)
            changed[ids] -= times * drawing.frequency_penalty + drawing.presence_penalty
        for token, bias in drawing.bias.items():
            changed[token] += bias
        if self._matcher is not None:
            changed[~self._matcher.allowed()] = -1e30  # finite: an infinite logit is a damaged model
        return changed


def _logprobs(logits: np.ndarray, token: int, count: int) -> tuple[Likely, tuple[Likely, ...]]:
    x = np.asarray(logits, np.float64)
    x = x - x.max()
    x -= np.log(np.exp(x).sum())
    best = np.argpartition(-x, min(count, len(x) - 1))[:count] if count else np.zeros(0, np.int64)
    best = best[np.argsort(-x[best], kind="stable")]
    return Likely(token, float(x[token])), tuple(Likely(int(i), float(x[i])) for i in best)

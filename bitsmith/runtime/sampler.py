"""Sampler: chooses tokens from logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from bitsmith.errors import TensorError
from bitsmith.runtime.sampling import PENALTY_WINDOW, Sampling

_BLOCK = 64  # logits whose largest is looked at first


class Sampler:
    """Draws tokens for one sequence.

    row: number of the sequence in a batch: each has its own random numbers
    prompt: tokens before the first that is drawn, for the penalty of repeated tokens
    """

    def __init__(self, sampling: Sampling, row: int = 0, *, prompt: Sequence[int] = ()) -> None:
        self._sampling = sampling
        self._seed = None if sampling.seed is None else [sampling.seed, row]
        self._recent = deque((int(token) for token in prompt[-PENALTY_WINDOW:]), PENALTY_WINDOW)

    @cached_property
    def _random(self) -> np.random.Generator:
        """Made at the first use: importing numpy.random takes a twentieth of the start time."""
        return np.random.default_rng(self._seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token for logits float [vocab]; computed in float64. Raises TensorError where one is NaN or Inf."""
        logits = np.asarray(logits, np.float64)
        if not np.isfinite(logits).all():
            raise TensorError(
                "the model's logits are not finite: its weights are damaged, see `bitsmith inspect --verify`, or "
                "its keys leave float16's range: give --cache=f32."
            )
        token = self._chosen(penalized(logits, self._recent, self._sampling.repeat_penalty))
        self._recent.append(token)
        return token

    def _chosen(self, logits: np.ndarray) -> int:
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        ids, probabilities = candidates(logits, self._sampling)
        drawn = np.searchsorted(np.cumsum(probabilities), self._random.random() * probabilities.sum(), side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def penalized(logits: np.ndarray, recent: Iterable[int], penalty: float) -> np.ndarray:
    """Logits float64 [vocab] with those of `recent` tokens made smaller; the same array for a penalty of 1.

    llama.cpp (llama-sampler.cpp, penalties): a logit above 0 is divided by the penalty, another is multiplied by it,
    once for each different token (Keskar et al. 2019, section 4.1).
    """
    ids = np.array(sorted(set(recent)), np.int64)
    if penalty == 1 or not len(ids):
        return logits
    changed = logits.copy()
    changed[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return changed


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that may be drawn, likeliest first, and their probabilities: int64 [k], float64 [k].

    logits: float64 [vocab], finite; sampling.temperature > 0. Among equally likely tokens the lower id comes first.
    llama.cpp (llama-sampler.cpp): top_p's probabilities are those among the tokens top_k kept, before temperature;
    min_p compares logits with the largest, also before temperature.
    """
    ids = _largest(logits, sampling.top_k) if 0 < sampling.top_k < len(logits) else np.arange(len(logits))
    ids = ids[np.argsort(-logits[ids], kind="stable")][: sampling.top_k or None]
    kept = logits[ids]
    if sampling.top_p < 1:
        count = int(np.searchsorted(np.cumsum(_softmax(kept)), sampling.top_p, side="left")) + 1
        kept = kept[:count]
    if sampling.min_p > 0:
        kept = kept[kept >= kept[0] + np.log(sampling.min_p)]
    return ids[: len(kept)], _softmax((kept - kept[0]) / sampling.temperature)


def _largest(logits: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest, ascending, and of those that equal the smallest of them.

    In `count` blocks the largest reaches the count-th largest of all blocks, so only what reaches it is looked at: on
    large vocabularies a tenth of the time.
    """
    blocks = len(logits) // _BLOCK
    ids = np.arange(len(logits))
    if blocks > count:
        most = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        ids = np.flatnonzero(logits >= np.partition(most, -count)[-count])
    kept = logits[ids]
    found: np.ndarray = ids[kept >= np.partition(kept, -count)[-count]]
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())

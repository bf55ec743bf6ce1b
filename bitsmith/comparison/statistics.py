"""Means with honest errors: tokens of one document are not independent, so whole documents are drawn again.

The cluster bootstrap draws as many documents as there are, with replacement, and computes every mean anew. All models
of a comparison see the same draws, so that the difference of two of them has the error of a paired comparison.
Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6, 8 and 13; Wilson 1927 for shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.comparison.scores import TokenScores
from bitsmith.evaluation.moments import Estimate

DRAWS = 2000
SEED = 20260
_CHUNK = 1 << 22  # counts in memory at once
_Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


class Draws:
    """The draws of a comparison: how often each document comes in each draw.

    clusters: one array a domain, int32 [tokens]; documents of different domains are drawn apart, so that the share of
        each domain stays
    """

    def __init__(self, clusters: Sequence[np.ndarray], *, draws: int = DRAWS, seed: int = SEED) -> None:
        self.draws = draws
        self._clusters = [np.asarray(each) for each in clusters]
        self._seeds = np.random.SeedSequence(seed).spawn(len(self._clusters))

    def means(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Mean of each draw, float64 [draws, columns].

        values: one array a domain, [tokens, columns], in the order of the clusters
        """
        sums, counts = np.zeros((self.draws, values[0].shape[1])), np.zeros((self.draws, 1))
        for clusters, seed, each in zip(self._clusters, self._seeds, values, strict=True):
            number = int(clusters.max()) + 1
            columns = [np.bincount(clusters, column, number) for column in np.asarray(each, np.float64).T]
            total = np.column_stack([*columns, np.bincount(clusters, minlength=number)])
            generator = np.random.default_rng(seed)
            step = max(1, _CHUNK // number)
            for start in range(0, self.draws, step):
                drawn = min(step, self.draws - start)
                weights = generator.multinomial(number, np.full(number, 1.0 / number), size=drawn).astype(np.float64)
                found = weights @ total
                sums[start : start + drawn] += found[:, :-1]
                counts[start : start + drawn] += found[:, -1:]
        return sums / counts


@dataclass(frozen=True)
class Summary:
    """The figures of one model over some tokens; errors are standard errors over documents.

    loss: nats per token
    perplexity: exp(loss)
    quality: perplexity of the original over that of the model, 1 where nothing is lost
    kld: mean KL(original || model), nats per token
    kld_median, kld_90, kld_99, kld_999, kld_max: its quantiles over tokens
    top1: share of tokens whose most probable token is the original's
    lost, won: share of tokens where the original was right and the model is wrong, and the other way round
    """

    tokens: int
    loss: Estimate
    perplexity: Estimate
    quality: Estimate
    kld: Estimate
    kld_median: float
    kld_90: float
    kld_99: float
    kld_999: float
    kld_max: float
    top1: Estimate
    lost: Estimate
    won: Estimate


@dataclass(frozen=True)
class Drawn:
    """A summary, and the means of all draws: kld and log ratio of perplexities, float64 [draws]."""

    summary: Summary
    kld: np.ndarray
    log_ratio: np.ndarray


def summarize(scores: Sequence[TokenScores], original: Sequence[TokenScores], draws: Draws) -> Drawn:
    """The figures of a model over all domains.

    scores, original: one a domain, in the order of the draws
    """

    columns = [
        np.column_stack(
            [
                *(each.losses, each.losses - first.losses, each.kld, each.same_top),
                *(first.right & ~each.right, ~first.right & each.right),
            ]
        )
        for each, first in zip(scores, original, strict=True)
    ]
    drawn = draws.means(columns)
    values, errors = np.concatenate(columns).mean(axis=0).tolist(), drawn.std(axis=0, ddof=1).tolist()
    loss, ratio, kld, top1, lost, won = (Estimate(*pair) for pair in zip(values, errors, strict=True))
    perplexity, quality = _exponential(loss.value), _exponential(-ratio.value)
    klds = np.concatenate([each.kld for each in scores])
    median, high90, high99, high999, top = np.quantile(klds, [0.5, 0.9, 0.99, 0.999, 1.0]).tolist()
    summary = Summary(
        tokens=len(klds),
        loss=loss,
        perplexity=Estimate(perplexity, perplexity * loss.error),
        quality=Estimate(quality, quality * ratio.error),
        kld=kld,
        kld_median=median,
        kld_90=high90,
        kld_99=high99,
        kld_999=high999,
        kld_max=top,
        top1=top1,
        lost=lost,
        won=won,
    )
    return Drawn(summary, drawn[:, 2], drawn[:, 1])


def _exponential(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


@dataclass(frozen=True)
class Difference:
    """How much more the first of two models loses, in nats of mean KLD, with the middle 95 % of the draws."""

    value: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Whether the error does not separate the two."""
        return self.low <= 0.0 <= self.high


def difference(first: Drawn, second: Drawn) -> Difference:
    """Paired: both were drawn alike."""
    return interval(first.summary.kld.value - second.summary.kld.value, first.kld - second.kld)


def interval(value: float, drawn: np.ndarray) -> Difference:
    """A value with the interval that holds 95 % of its draws."""
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Difference(value, low, high)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The interval that holds a share with 95 %, from `hits` of `count`. (0, 1) without any."""
    if count == 0:
        return 0.0, 1.0
    share, squared = hits / count, _Z * _Z
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    half = _Z / (1 + squared / count) * math.sqrt(share * (1 - share) / count + squared / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)

"""Perplexity: the exponential of the mean negative log likelihood of the text's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitsmith.evaluation.moments import Estimate, Moments, exponential

CHUNK_VALUES = 1 << 17  # logits processed at once: one megabyte of float64, which stays in the cache


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on a text.

    tokens: number of scored predictions
    loss: mean negative log likelihood, nats per token
    perplexity: exp(loss), with its error by the delta method
    """

    tokens: int
    loss: Estimate
    perplexity: Estimate


class PerplexityMeter:
    """Adds up losses batch by batch. Its memory does not grow."""

    def __init__(self) -> None:
        self._losses = Moments()

    def add(self, losses: np.ndarray) -> None:
        """Add the losses of some tokens, float64 [tokens], nats."""
        self._losses.add(losses)

    def result(self) -> Perplexity:
        """The perplexity of all tokens so far. Standard errors are over tokens, as in llama-perplexity."""
        loss = self._losses.estimate()
        return Perplexity(self._losses.count, loss, exponential(loss))


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each target in nats: float64 [rows].

    logits: [rows, vocab] float32, finite; the softmax is computed in float64
    targets: [rows] int, the text's next token
    """
    losses = np.empty(len(targets), dtype=np.float64)
    for rows in row_chunks(logits):
        part = logits[rows]
        shifted, log_sum = shifted_logits(part)
        losses[rows] = log_sum - shifted[np.arange(len(part)), targets[rows]]
    return losses


def row_chunks(logits: np.ndarray) -> Iterator[slice]:
    """Slices of rows of `logits` [rows, vocab] that hold about CHUNK_VALUES values each."""
    step = max(1, CHUNK_VALUES // max(1, logits.shape[1]))
    return (slice(start, start + step) for start in range(0, logits.shape[0], step))


def shifted_logits(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits minus the maximum of their row, float64 [rows, vocab], and the log of the sum of their exp, [rows].

    The first minus the second is the log-softmax.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted, np.log(np.exp(shifted).sum(axis=1))

"""Streaming mean and standard error, accumulated in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bitsmith.errors import TensorError

_LARGEST_EXPONENT = 700.0  # exp of 709.8 is the largest float


@dataclass(frozen=True)
class Estimate:
    """A measured number and its standard error, in the same unit."""

    value: float
    error: float


class Moments:
    """Count, mean and sum of squared deviations of a stream of numbers. Batches are merged without cancellation.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add `values`, an array of any shape; it is converted to float64."""
        values = np.asarray(values, dtype=np.float64)
        if values.size == 0:
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        total = self.count + values.size
        shift = mean - self.mean
        self._squares += squares + shift * shift * self.count * values.size / total
        self.mean += shift * values.size / total
        self.count = total

    def estimate(self) -> Estimate:
        """The mean and its standard error, sqrt(sum of squared deviations / n / (n - 1)). NaN with fewer than two."""
        if self.count < 2:
            return Estimate(self.mean if self.count else math.nan, math.nan)
        return Estimate(self.mean, math.sqrt(self._squares / self.count / (self.count - 1)))


def exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate. Its error is by the delta method: d exp(x) = exp(x) dx.

    Raises TensorError if the result is beyond all floats.
    """
    if estimate.value > _LARGEST_EXPONENT:
        raise TensorError(
            f"the model gives the text a loss of {estimate.value:.4g} a token, so its perplexity is beyond all "
            "numbers: its weights are damaged; check the file with inspect --verify"
        )
    value = math.exp(estimate.value)
    return Estimate(value, value * estimate.error)


def square_root(estimate: Estimate) -> Estimate:
    """Square root of an estimate >= 0. Its error is by the delta method; 0 if the value is zero."""
    if estimate.value <= 0.0:
        return Estimate(0.0, 0.0)
    value = math.sqrt(estimate.value)
    return Estimate(value, 0.5 * estimate.error / value)

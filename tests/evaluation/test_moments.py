"""Streaming moments against numpy on the whole array."""

import math

import numpy as np
import pytest

from bitsmith.errors import TensorError
from bitsmith.evaluation.moments import Estimate, Moments, exponential, square_root


def test_merged_batches_equal_the_whole() -> None:
    values = np.random.default_rng(0).normal(1e6, 1.0, 1000)
    moments = Moments()
    for part in np.split(values, [1, 1, 2, 300, 999]):
        moments.add(part)
    estimate = moments.estimate()
    assert estimate.value == pytest.approx(values.mean(), rel=1e-14)
    assert estimate.error == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-9)


def test_float32_input_is_summed_in_float64() -> None:
    moments = Moments()
    moments.add(np.full(2**24 + 2, 1.0, dtype=np.float32)[: 2**12])
    moments.add(np.array([1e-12], dtype=np.float32))
    assert moments.estimate().value == pytest.approx(4096 / 4097, rel=1e-12)


def test_too_few_values_have_no_error() -> None:
    moments = Moments()
    assert math.isnan(moments.estimate().value)
    moments.add(np.array([2.0]))
    assert moments.estimate().value == 2.0
    assert math.isnan(moments.estimate().error)


def test_delta_method() -> None:
    assert exponential(Estimate(math.log(5.0), 0.01)).value == pytest.approx(5.0)
    assert exponential(Estimate(math.log(5.0), 0.01)).error == pytest.approx(0.05)
    assert square_root(Estimate(4.0, 0.4)) == Estimate(2.0, 0.1)
    assert square_root(Estimate(0.0, 0.0)) == Estimate(0.0, 0.0)


def test_a_loss_beyond_all_numbers_is_named() -> None:
    """Damaged scales give losses whose exponential overflows."""
    assert exponential(Estimate(650.0, 1.0)).value > 1e282
    with pytest.raises(TensorError, match="perplexity is beyond all numbers"):
        exponential(Estimate(5e4, 1.0))

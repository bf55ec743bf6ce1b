"""Streaming statistics equal those of all tokens at once, however the tokens are cut."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bitsmith.calibration import stats
from bitsmith.calibration.stats import GramMeter, StatsMeter, _column_sums, _column_sums_by_array
from bitsmith.errors import TensorError


def inputs() -> np.ndarray:
    x = np.random.default_rng(3).standard_t(4, (50, 12)).astype(np.float32)
    x[:, 5] = 0  # a dead channel
    return x


@pytest.mark.parametrize("cuts", [[0, 50], [0, 1, 2, 31, 50]])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_sums_are_those_of_all_tokens(cuts: list[int], kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_CHUNK", 100)
    x, meter = inputs(), StatsMeter(12, gram=True)
    for start, stop in pairwise(cuts):
        meter.add(kind(x[start:stop]).reshape(1, -1, 12))
    found, wide = meter.result(), x.astype(np.float64)
    assert found.count == 50
    np.testing.assert_allclose(found.square, (wide**2).sum(0), rtol=1e-13)
    np.testing.assert_allclose(found.mean_abs, np.abs(wide).mean(0), rtol=1e-6)
    np.testing.assert_array_equal(found.max_abs, np.abs(x).max(0))
    assert found.gram is not None
    np.testing.assert_allclose(found.gram, wide.T @ wide, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.importance, (wide**2).mean(0), rtol=1e-6)
    assert found.square.dtype == np.float64
    assert found.gram.dtype == found.importance.dtype == np.float32
    assert found.square[5] == found.mean_abs[5] == found.max_abs[5] == 0


def test_what_nobody_asked_for_is_left_out() -> None:
    meter = StatsMeter(12)
    meter.add(inputs())
    assert meter.result().gram is None
    assert meter.result().sample.shape == (0, 12)


def test_the_sample_is_the_seeds_and_not_the_batches() -> None:
    x = inputs()

    def sample(seed: int, *cuts: int) -> np.ndarray:
        meter = StatsMeter(12, sample=7, seed=seed)
        for part in np.split(x, cuts):
            meter.add(part)
        return meter.result().sample

    whole = sample(1)
    np.testing.assert_array_equal(whole, sample(1, 3, 4, 40))
    places = [int(np.flatnonzero((x == row).all(1))[0]) for row in whole]
    assert places == sorted(set(places))
    assert len(places) == 7
    assert not np.array_equal(whole, sample(2))


def test_a_sample_larger_than_the_input_is_all_of_it() -> None:
    meter = StatsMeter(12, sample=100)
    meter.add(inputs())
    np.testing.assert_array_equal(meter.result().sample, inputs())


def test_every_row_is_as_likely_to_be_kept() -> None:
    x = np.arange(20, dtype=np.float32)[:, None]
    hits = np.zeros(20)
    for seed in range(400):
        meter = StatsMeter(1, sample=5, seed=seed)
        meter.add(x[:13])
        meter.add(x[13:])
        hits[meter.result().sample[:, 0].astype(int)] += 1
    assert hits.sum() == 400 * 5
    assert abs(hits - 100).max() < 45  # five standard deviations of a binomial


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    x, meter = inputs(), StatsMeter(12)
    meter.add(x)
    before = meter.result()
    x[20, 7] = bad
    with pytest.raises(TensorError, match="column 7"):
        meter.add(x)
    assert meter.result().count == before.count
    np.testing.assert_array_equal(meter.result().square, before.square)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_gram_matrix_alone(kind) -> None:
    x, meter = inputs(), GramMeter()
    for part in (x[:20], x[20:]):
        meter.add(kind(part).reshape(2, -1, 12))
    found, wide = meter.result(), x.astype(np.float64)
    assert found.count == 50
    np.testing.assert_allclose(np.asarray(found.gram), wide.T @ wide, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.importance, (wide**2).mean(0), rtol=1e-5)
    assert found.mean_abs.shape == found.max_abs.shape == (0,)
    assert found.sample.shape == (0, 12)


def test_the_drift_is_what_inputs_moved_times_x() -> None:
    x, meter = inputs(), GramMeter()
    other = x + np.random.default_rng(4).standard_normal(x.shape).astype(np.float32)
    for start in (0, 25):
        meter.add(x[start : start + 25], other[start : start + 25])
    np.testing.assert_allclose(meter.taken()[1], (other - x).astype(np.float64).T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gram_matrix_that_is_not_finite_is_refused(bad: float) -> None:
    x, meter = inputs(), GramMeter()
    x[20, 7] = bad
    x[21, 9] = bad
    with np.errstate(invalid="ignore"):
        meter.add(x)
    with pytest.raises(TensorError, match="column 7"):
        meter.result()


def test_what_was_given_out_does_not_change_with_later_tokens() -> None:
    meter = StatsMeter(12, gram=True, sample=3)
    meter.add(inputs())
    first = meter.result()
    kept = {name: np.array(getattr(first, name)) for name in ("square", "mean_abs", "max_abs", "gram", "sample")}
    meter.add(inputs())
    for name, values in kept.items():
        np.testing.assert_array_equal(getattr(first, name), values)
    np.testing.assert_array_equal(meter.result().square, 2 * kept["square"])


@pytest.mark.parametrize("cols", [3, 16, 150])
def test_column_sums_of_the_core(cols: int) -> None:
    x = np.random.default_rng(6).standard_normal((300, cols)).astype(np.float32)
    for kind in (np.asarray, torch.from_numpy):
        for found, expected in zip(_column_sums(kind(x)), _column_sums_by_array(x), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    x[5, 1] = np.nan
    assert np.isnan(_column_sums(x)[2]).tolist() == [column == 1 for column in range(cols)]


def test_the_upper_half_is_mirrored() -> None:
    x = np.random.default_rng(7).standard_normal((90, 300)).astype(np.float32)
    for kind in (np.asarray, torch.from_numpy):
        meter = GramMeter()
        meter.add(kind(x))
        total = np.asarray(meter.result().gram)
        np.testing.assert_array_equal(total, total.T)
        np.testing.assert_allclose(total, x.astype(np.float64).T @ x, rtol=1e-4, atol=1e-3)

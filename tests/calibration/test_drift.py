"""How much of a correction for moved inputs is kept: where the halves of the tokens agree, and where chance made it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitsmith.calibration.drift import Drift, HalfMeter
from bitsmith.calibration.grams import SUMMED_ROWS
from bitsmith.calibration.rounding import gptq_rounder
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.hessian import Factor, prepare, solved

COLS = 64


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def measured(x: Tensor, original: Tensor, weight: Tensor) -> tuple[Stats, Drift]:
    meter, half = GramMeter(), HalfMeter.of([weight])
    meter.add(x, original)
    half.add(x, original)
    stats, total = meter.taken()
    return stats, Drift(total, half.result())


def factor_of(stats: Stats) -> Factor:
    assert stats.gram is not None
    return prepare(stats.gram / stats.count)


def share(x: Tensor, original: Tensor, weight: Tensor) -> float:
    stats, drift = measured(x, original, weight)
    split = drift.split(stats.count)
    return 1.0 if split is None else split.share(factor_of(stats))


def test_noise_is_not_corrected_for_and_a_change_is() -> None:
    x, weight = numbers(0, 8, 128, COLS), numbers(1, 32, COLS)
    noise, change = 0.1 * numbers(2, *x.shape), x @ (0.1 * numbers(3, COLS, COLS))
    assert share(x, x + noise, weight) < 0.2
    assert share(x, x + change, weight) > 0.9
    assert 0.3 < share(x, x + noise + 0.05 * change, weight) < 0.9


def test_the_share_is_the_best_one_on_other_tokens() -> None:
    """Of all shares, against the error on tokens that the correction was not made from, in float64."""
    weight, mixing, noisy = numbers(1, 32, COLS), numbers(2, COLS, COLS), numbers(3, 8, 128, COLS)
    x, other = numbers(4, 8, 128, COLS), numbers(5, 64, 128, COLS)
    original, expected = x + 0.01 * x @ mixing + 0.2 * noisy, other + 0.01 * other @ mixing
    stats, drift = measured(x, original, weight)
    factor = factor_of(stats)
    whole = weight.double() @ solved(factor, drift.total / stats.count).double()
    moved = (expected - other).double() @ weight.double().T
    errors = [float((moved - other.double() @ (s * whole).T).square().mean()) for s in np.linspace(0, 1, 101)]
    split = drift.split(stats.count)
    assert split is not None
    assert split.share(factor) == pytest.approx(np.argmin(errors) / 100, abs=0.1)


def test_halves_do_not_depend_on_batches() -> None:
    x, original, weight = numbers(0, 6, 40, COLS), numbers(1, 6, 40, COLS), numbers(2, 100, COLS)
    whole, pieces = HalfMeter.of([weight]), HalfMeter.of([weight])
    whole.add(x, original)
    for start in range(0, 6, 1):
        pieces.add(x[start : start + 1], original[start : start + 1])
    assert whole.result().count == pieces.result().count == 120
    assert torch.equal(whole.result().seen, pieces.result().seen)
    expected = whole.result().probe @ (original[::2] - x[::2]).flatten(0, 1).T @ x[::2].flatten(0, 1)
    torch.testing.assert_close(whole.result().seen, expected, rtol=1e-4, atol=1e-3)


def test_a_long_window_has_two_halves_and_a_short_one_has_none() -> None:
    weight = numbers(0, 8, COLS)
    long, short = numbers(1, 1, 2 * SUMMED_ROWS, COLS), numbers(1, 1, SUMMED_ROWS, COLS)
    _, drift = measured(long, 2 * long, weight)
    assert drift.half is not None
    assert drift.half.count == SUMMED_ROWS
    assert share(short, short + 0.1 * numbers(2, *short.shape), weight) == 1.0
    assert share(long, long + 0.1 * numbers(2, *long.shape), weight) < 1.0


def test_rows_come_from_all_matrices() -> None:
    assert HalfMeter.of([torch.zeros(1000, 8), torch.ones(3, 8)]).probe.mean() == pytest.approx(3 / 35)
    assert len(HalfMeter.of([torch.zeros(64, 8)]).probe) == 64
    assert len(HalfMeter.of([torch.zeros(65, 8)]).probe) == 33


def test_gptq_after_noise_is_gptq_without_correction() -> None:
    x, weight, form = numbers(0, 64, 128, COLS), numbers(1, 32, COLS), get_format("int4-g32")
    stats, drift = measured(x, x + 0.3 * numbers(2, *x.shape), weight)
    alone = replace(stats, gram=stats.gram.clone()), Drift(drift.total.clone())  # both are taken over
    whole = gptq_rounder(*alone, EFFORTS["normal"])(weight, form)[0].values()
    own = gptq_rounder(stats, drift, EFFORTS["normal"])(weight, form)[0].values()
    none = gptq_rounder(stats, None, EFFORTS["normal"])(weight, form)[0].values()
    assert np.abs(own - none).mean() < 0.5 * np.abs(whole - none).mean()

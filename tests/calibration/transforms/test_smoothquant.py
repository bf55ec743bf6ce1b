"""SmoothQuant: both roundings simulated, outlying features moved into the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitsmith.calibration.transforms.smoothquant import SmoothQuant, with_absmax
from bitsmith.errors import UsageError
from bitsmith.quant.formats import get_format
from bitsmith.quant.input_rounding import InputRounding
from tests.calibration.transforms.samples import alone, matrix, outlying, stats_of

ROWS = np.arange(128)
WEIGHTS = {"ffn_down": matrix(32, 128)}
INT8 = {"ffn_down": get_format("int8-channel")}


@pytest.mark.parametrize("input_rounding", [InputRounding("int8", "token"), InputRounding("int8", "tensor")], ids=str)
def test_outliers_are_smoothed(input_rounding: InputRounding) -> None:
    x = outlying(200, 128)
    found = SmoothQuant(steps=11, input_rounding=input_rounding)(alone(), WEIGHTS, INT8, stats_of(x), ROWS)
    assert found.loss_after < 0.7 * found.loss_before
    big = np.abs(x).max(0) > 12.0
    assert found.scale[big].min() > found.scale[~big].max()


def test_tokens_are_scaled_by_themselves_or_together() -> None:
    x = np.array([[1.0, -0.5, 0.004], [100.0, 3.0, 0.3]], np.float32)
    largest = np.abs(x).max(0)
    alone_ = with_absmax(InputRounding("int8", "token"), largest).rounded(x)
    together = with_absmax(InputRounding("int8", "tensor"), largest).rounded(x)
    assert (np.abs(alone_ - x) <= 0.51 / 127 * np.array([[1.0], [100.0]], np.float32) + 1e-6).all()
    np.testing.assert_allclose(together, np.clip(np.round(x * 1.275), -128, 127) / 1.275, rtol=1e-5)


def test_even_activations_are_left_alone() -> None:
    x = np.random.default_rng(0).choice([-1.0, 1.0], (100, 128)).astype(np.float32)
    even = {"ffn_down": np.random.default_rng(1).choice([-0.5, 0.5], (32, 128)).astype(np.float32)}
    found = SmoothQuant(steps=5)(alone(), even, INT8, stats_of(x), ROWS)
    assert not found.changes
    assert found.loss_after == found.loss_before


def test_a_dead_feature_does_no_harm() -> None:
    x = outlying(200, 128)
    x[:, 3] = 0.0
    found = SmoothQuant(steps=5)(alone(), WEIGHTS, INT8, stats_of(x), ROWS)
    assert found.scale[3] == 1.0
    assert np.isfinite(found.scale).all()


def test_a_sample_is_needed() -> None:
    without = replace(stats_of(outlying(10, 128)), sample=np.empty((0, 128), np.float32))
    with pytest.raises(UsageError, match="sample"):
        SmoothQuant()(alone(), WEIGHTS, INT8, without, ROWS)

"""SmoothQuant: both roundings simulated, outlying features moved into the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitsmith.calibration.transforms.smoothquant import SmoothQuant, with_absmax
from bitsmith.errors import UsageError
from bitsmith.models.arch.groups import LinearGroup
from bitsmith.quant.formats import get_format
from bitsmith.quant.input_rounding import InputRounding
from tests.calibration.transforms.samples import alone, matrix, outlying, stats_of

ROWS = np.arange(128)
WEIGHTS = {"ffn_down": matrix(32, 128)}
INT8 = {"ffn_down": get_format("int8-channel")}
TOKEN = {"ffn_down": InputRounding("int8", "token")}


@pytest.mark.parametrize("input_rounding", [InputRounding("int8", "token"), InputRounding("int8", "tensor")], ids=str)
def test_outliers_are_smoothed(input_rounding: InputRounding) -> None:
    x = outlying(200, 128)
    found = SmoothQuant({"ffn_down": input_rounding}, steps=11)(alone(), WEIGHTS, INT8, stats_of(x), ROWS)
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
    found = SmoothQuant(TOKEN, steps=5)(alone(), even, INT8, stats_of(x), ROWS)
    assert not found.changes
    assert found.loss_after == found.loss_before


def test_a_dead_feature_does_no_harm() -> None:
    x = outlying(200, 128)
    x[:, 3] = 0.0
    found = SmoothQuant(TOKEN, steps=5)(alone(), WEIGHTS, INT8, stats_of(x), ROWS)
    assert found.scale[3] == 1.0
    assert np.isfinite(found.scale).all()


def test_a_sample_is_needed() -> None:
    without = replace(stats_of(outlying(10, 128)), sample=np.empty((0, 128), np.float32))
    with pytest.raises(UsageError, match="sample"):
        SmoothQuant(TOKEN)(alone(), WEIGHTS, INT8, without, ROWS)


PAIR = LinearGroup("ffn_in", ("ffn_gate", "ffn_up"), "ffn_norm")
BOTH = {"ffn_gate": matrix(32, 128, 1), "ffn_up": matrix(32, 128, 2)}


def _pair_loss(gate: InputRounding | None, up: InputRounding | None) -> float:
    given = {"ffn_gate": gate, "ffn_up": up}
    inputs = {name: rounding for name, rounding in given.items() if rounding is not None}
    formats = dict.fromkeys(BOTH, get_format("int8-channel"))
    return SmoothQuant(inputs, steps=3)(PAIR, BOTH, formats, stats_of(outlying(200, 128)), ROWS).loss_before


def test_each_linear_of_a_group_has_its_own_rounding() -> None:
    """The loss of a group is the sum of its linears' losses, each with its own rounding of the input."""
    int8, fp8 = InputRounding("int8", "tensor"), InputRounding("fp8", "token")
    mixed = _pair_loss(int8, fp8) + _pair_loss(fp8, int8)
    assert mixed == pytest.approx(_pair_loss(int8, int8) + _pair_loss(fp8, fp8), rel=1e-6)
    assert _pair_loss(int8, None) < _pair_loss(int8, int8)


def test_a_group_whose_inputs_are_not_rounded_is_left_alone() -> None:
    found = SmoothQuant({})(alone(), WEIGHTS, INT8, stats_of(outlying(200, 128)), ROWS)
    assert not found.changes
    assert found.reason == "its inputs are not rounded"

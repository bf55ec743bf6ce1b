"""Weights that are corrected for the drift of an input with many columns, in little memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitsmith.calibration import input_hessian
from bitsmith.calibration.drift import Drift
from bitsmith.calibration.input_hessian import InputHessian
from bitsmith.calibration.rounding import gptq_rounder, rounded_group
from bitsmith.calibration.stats import GramMeter, Stats
from bitsmith.errors import TensorError
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.damping import DAMPING, damping_for
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.hessian import corrected, correction, prepare, solve_in_place

COLS = 320  # more than two steps


def meter(cols: int = COLS) -> GramMeter:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((900, cols)).astype(np.float32))
    found = GramMeter()
    found.add(x, x + 0.1 * torch.from_numpy(random.standard_normal((900, cols)).astype(np.float32)))
    return found


def weights(rows: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, COLS)).astype(np.float32))


def taken() -> tuple[Stats, Drift]:
    stats, total = meter().taken()
    return stats, Drift(total)


def hessian() -> InputHessian:
    stats, drift = meter().taken()
    return InputHessian.of(stats.gram, Drift(drift), stats.count, stats.damping)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_hessian, "WIDE", COLS)


def test_solving_in_place() -> None:
    factor = prepare(hessian().matrix)
    damped = factor.hessian.double() + torch.diag(factor.added.double())
    given = weights(600)
    expected = torch.linalg.solve(damped, given.double().T).T
    found = given.clone()
    assert solve_in_place(factor, found) is found
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [24, COLS, 500])
def test_the_weights_are_corrected_as_by_a_matrix(rows: int, wide: None) -> None:
    stats, drift = meter().taken()
    factor = prepare(stats.gram / stats.count, damping=stats.damping)
    w = weights(rows)
    expected = corrected(w, correction(factor, drift / stats.count))
    torch.testing.assert_close(hessian().corrected(w), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(w, expected, atol=1e-2)


def test_few_tokens_for_many_columns_give_more_damping() -> None:
    stats, drift = meter().taken()
    own = InputHessian.of(stats.gram, Drift(drift), stats.count, stats.damping)
    assert own.factor.damping == own.by_vectors.damping == pytest.approx(min(DAMPING + COLS / stats.count, 1.0))
    assert not own.factor.raised
    assert replace(stats, exact=True).damping == DAMPING
    assert damping_for(4096, 1 << 30) == pytest.approx(DAMPING, rel=1e-3)
    assert damping_for(4096, 8) == 1.0


def test_products_that_are_taken_before_the_hessian_is_factored(wide: None) -> None:
    """The drift is free then, and the weights are the same to the bit: tasks may round one matrix of a group alone."""
    given = {"ffn_down": weights(40), "other": weights(COLS, 2)}
    alone = hessian()
    early = hessian()
    products = early.products(given)
    assert early.drift is None
    assert "factor" not in early.__dict__
    for name, w in given.items():
        assert torch.equal(early.corrected(w, products[name]), alone.corrected(w))


def test_products_are_not_taken_where_a_matrix_has_more_rows_than_columns(wide: None) -> None:
    own = hessian()
    assert own.products({"few": weights(8), "many": weights(COLS + 1)}) == {}
    assert own.drift is not None


def test_a_group_is_rounded_to_the_same_codes(wide: None, monkeypatch: pytest.MonkeyPatch) -> None:
    format = get_format("int4-g64")
    given = {name: (weights(rows, rows), format) for name, rows in (("a", 40), ("b", 100))}
    found = rounded_group(gptq_rounder(*taken(), EFFORTS["normal"]), "blk.0.", given)
    monkeypatch.setattr(input_hessian, "WIDE", 1 << 20)
    narrow = rounded_group(gptq_rounder(*taken(), EFFORTS["normal"]), "blk.0.", given)
    for name, (tensor, said) in found.items():
        other, told = narrow[name]
        assert (tensor.codes != other.codes).mean() < 2e-3
        assert said.gptq is not None
        assert told.gptq is not None
        assert said.gptq.error == pytest.approx(told.gptq.error, rel=1e-3)


def test_a_drift_that_is_not_finite(wide: None) -> None:
    own = hessian()
    assert own.drift is not None
    own.drift[3, 300] = torch.nan
    with pytest.raises(TensorError, match="must be finite"):
        own.corrected(weights(8))


def test_sums_are_taken_over() -> None:
    sums = meter()
    stats, drift = sums.taken()
    own = InputHessian.of(stats.gram, Drift(drift), stats.count, stats.damping)
    assert own.matrix.data_ptr() == stats.gram.data_ptr()
    assert own.drift is drift
    assert sums._sum.taken() == (None, None)

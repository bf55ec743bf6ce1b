"""The factor of a Hessian: exact, damped where needed, in the order asked for."""

import numpy as np
import pytest
import torch

from bitsmith.errors import TensorError
from bitsmith.quant.rounders.damping import DAMPING
from bitsmith.quant.rounders.hessian import Factor, corrected, correction, prepare
from tests.quant.rounders.problems import problem


def restored(factor: Factor) -> np.ndarray:
    """U D U^T in the columns' own order, float64."""
    u = torch.triu(factor.feedback.double(), 1) + torch.eye(factor.cols)
    ordered = (u * factor.pivots.double()) @ u.T
    h = torch.empty_like(ordered)
    h[factor.order[:, None], factor.order[None, :]] = ordered
    return h.numpy()


@pytest.mark.parametrize("cols", [1, 64, 128, 129, 700])
@pytest.mark.parametrize("order", ["natural", "activation", "pivoted"])
def test_it_factors_the_damped_hessian(cols: int, order: str) -> None:
    _, h = problem(cols=cols, rows=1)
    factor = prepare(h, order=order)
    mean = np.diagonal(h).mean()
    wanted = h.astype(np.float64) + DAMPING * mean * np.eye(cols)
    assert np.abs(restored(factor) - wanted).max() < 1e-6 * np.abs(h).max()
    assert (factor.damping, factor.raised) == (DAMPING, False)
    assert factor.natural == (order == "natural")
    diagonal = np.diagonal(h)[factor.order.numpy()]
    assert order != "activation" or (np.diff(diagonal) <= 0).all()
    assert np.array_equal(np.sort(factor.order.numpy()), np.arange(cols))


def test_pivoted_order_takes_the_least_conditional_variance_last() -> None:
    _, h = problem(cols=150, rows=1)
    factor = prepare(h, order="pivoted")
    rest = h.astype(np.float64) + np.diag(factor.added.numpy())
    for column in factor.order.flip(0).tolist():
        diagonal = np.diagonal(rest).copy()
        assert diagonal[column] <= np.nanmin(diagonal) * (1 + 1e-4)
        rest -= np.outer(rest[:, column], rest[column]) / rest[column, column]
        rest[column] = rest[:, column] = np.nan
        np.fill_diagonal(rest, np.where(np.isnan(np.diagonal(rest)), np.nan, np.diagonal(rest)))


def test_importance_is_what_the_other_columns_cannot_make_up_for() -> None:
    _, h = problem(cols=64, rows=1)
    factor = prepare(h, order="activation")
    first = int(factor.order[0])
    inverse = np.linalg.inv(h.astype(np.float64) + factor.added.numpy() * np.eye(64))
    assert float(factor.importance[first]) == pytest.approx(1 / inverse[first, first], rel=1e-4)
    last = int(factor.order[-1])
    assert float(factor.importance[last]) == pytest.approx(h[last, last] + float(factor.added[last]), rel=1e-5)


def test_damping_grows_until_the_matrix_is_positive_definite() -> None:
    _, h = problem(cols=300, rows=1)
    values, vectors = np.linalg.eigh(h.astype(np.float64))
    values[0] = -0.5 * np.diagonal(h).mean()
    broken = (vectors * values @ vectors.T).astype(np.float32)
    factor = prepare(broken)
    assert (factor.damping, factor.raised) == (1.0, True)
    wanted = broken + np.diag(factor.added.numpy())
    assert np.abs(restored(factor) - wanted).max() < 1e-4 * np.abs(h).max()
    opposed = np.full((64, 64), -0.05, np.float32) + 1.05 * np.eye(64, dtype=np.float32)  # least eigenvalue -2.15
    with pytest.raises(TensorError, match="not positive definite even with 1 of"):
        prepare(opposed)


def test_float64_serves_where_float32_does_not() -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(400)
    h = (np.outer(direction, direction) + 1e-7 * np.eye(400)).astype(np.float32)
    factor = prepare(h, damping=3e-8)  # float32 loses what is added
    assert np.isfinite(factor.pivots.numpy()).all()
    assert (factor.pivots > 0).all()


def test_dead_columns_count_apart() -> None:
    _, h = problem(cols=130, rows=1)
    dead = [0, 5, 129]
    h[dead] = 0
    h[:, dead] = 0
    factor = prepare(h)
    assert factor.dead == 3
    living = np.delete(np.diagonal(h), dead)
    assert np.allclose(factor.added.numpy()[dead], living.mean())
    assert np.allclose(np.delete(factor.added.numpy(), dead), DAMPING * living.mean())


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (np.zeros((3, 4), np.float32), r"must be square.*\[3, 4\]"),
        (np.zeros((0, 0), np.float32), "must be square"),
        (np.full((3, 3), np.nan, np.float32), "NaN"),
        (np.diag([1.0, -1.0]).astype(np.float32), "negative diagonal"),
        (np.diag([1.0, np.inf]).astype(np.float32), "infinite"),
    ],
)
def test_what_is_no_hessian(h: np.ndarray, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        prepare(h)


def test_the_hessian_given_is_left_alone() -> None:
    _, h = problem(cols=130, rows=1)
    before = h.copy()
    prepare(h, damping=0.1)
    assert np.array_equal(h, before)


@pytest.mark.parametrize("order", ["natural", "activation", "pivoted"])
def test_corrected_weights_give_the_original_outputs(order: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((900, 150)) @ (np.eye(150) + rng.standard_normal((150, 150)) / 15)
    seen = x @ (np.eye(150) + 0.05 * rng.standard_normal((150, 150))) + 0.1 * rng.standard_normal(x.shape)
    w = rng.standard_normal((6, 150)).astype(np.float32)
    factor = prepare((seen.T @ seen).astype(np.float32), order=order, damping=1e-5)
    moved = corrected(w, correction(factor, ((x - seen).T @ seen).astype(np.float32)))
    best = np.linalg.lstsq(seen, x @ w.T.astype(np.float64), rcond=None)[0].T
    assert np.abs(moved - best).max() < 2e-3 * np.abs(best).max()
    assert np.square(seen @ moved.T - x @ w.T).sum() < 0.5 * np.square(seen @ w.T - x @ w.T).sum()
    as_torch = corrected(torch.from_numpy(w), correction(factor, torch.zeros(150, 150)))
    assert np.array_equal(as_torch.numpy(), w)


def test_drift_of_another_input_is_refused() -> None:
    _, h = problem(cols=64, rows=1)
    with pytest.raises(TensorError, match=r"\[64, 64\].*found shape \[32, 32\]"):
        correction(prepare(h), h[:32, :32])
    with pytest.raises(TensorError, match="finite"):
        correction(prepare(h), np.full_like(h, np.inf))


def test_damping_grows_tenfold() -> None:
    _, h = problem(cols=64, rows=1)
    values, vectors = np.linalg.eigh(h.astype(np.float64))
    values[0] = -0.1 * np.diagonal(h).mean()
    assert prepare((vectors * values @ vectors.T).astype(np.float32)).damping == pytest.approx(0.3)

"""GPTQ's pass and coordinate descent: the C++ core against the torch code, which defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.base import NeedsExtent
from bitsmith.quant.grid import Grid
from bitsmith.quant.rounders.core_slab import CoreSlab, output_loss
from bitsmith.quant.rounders.gptq import Rounded, gptq_rows
from bitsmith.quant.rounders.hessian import Factor, _pivoted, _pivoted_by_torch, prepare
from bitsmith.system.core import core

pytestmark = pytest.mark.skipif(not hasattr(core(), "Slab"), reason="needs the C++ core of these sources")
NAMES = [
    "int4-g64",
    "int4-g128-asym",
    "int2-g32-asym",
    "int3-channel-asym",
    "int8-channel",
    "int4-tensor",
    "nf4",
    "fp4",
    "fp8",
    "q4_0",
    "q2_k",
    "q3_k",
    "q4_k",
    "q6_k",
    "iq4_nl",
    "mxfp4",
]
ISAS = [] if core() is None else core().isas()  # type: ignore[union-attr]


def problem(rows: int, cols: int) -> tuple[torch.Tensor, Factor]:
    """Weights and the factor of correlated inputs whose columns differ in size."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3 * cols, cols)).astype(np.float32)
    x += x @ (rng.standard_normal((cols, cols)).astype(np.float32) * np.float32(2 / cols**0.5))
    x *= np.exp(rng.standard_normal(cols) * 0.5).astype(np.float32)
    x[:, 7] = 0
    w = rng.standard_t(5, (rows, cols)).astype(np.float32) * np.float32(0.02)
    return torch.from_numpy(w), prepare(x.T @ x / len(x))


def both(
    w: torch.Tensor, name: str, factor: Factor, monkeypatch: pytest.MonkeyPatch, sweeps: int
) -> tuple[Rounded, Rounded]:
    """Rounded by the core, and by torch."""
    format = get_format(name)
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float(w.min()), float(w.max()))
    found = gptq_rows(w, format, factor, sweeps=sweeps)
    with monkeypatch.context() as patch:
        patch.setattr(CoreSlab, "of", lambda *args: None)
        return found, gptq_rows(w, format, factor, sweeps=sweeps)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_codes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, factor = problem(70, 256)
    for sweeps in (0, 2):
        found, expected = both(w, name, factor, monkeypatch, sweeps)
        assert found.report.error == pytest.approx(expected.report.error, rel=1e-3)
        assert found.report.nearest == pytest.approx(expected.report.nearest, rel=1e-4)
        assert (found.codes != expected.codes).float().mean() < 2e-3
        assert found.report.kept == expected.report.kept


def test_rows_longer_than_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    w, factor = problem(20, 448)
    for name in ("int4-g64", "int3-channel"):
        found, expected = both(w, name, factor, monkeypatch, 2)
        assert found.report.error == pytest.approx(expected.report.error, rel=1e-3)


def test_natural_order(monkeypatch: pytest.MonkeyPatch) -> None:
    w, factor = problem(20, 256)
    natural = prepare(factor.hessian, order="natural")
    found, expected = both(w, "int4-g64", natural, monkeypatch, 1)
    assert found.report.error == pytest.approx(expected.report.error, rel=1e-3)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_and_any_number_of_threads(isa: str) -> None:
    w, factor = problem(130, 256)
    format = get_format("int4-g64-asym")
    grid = format.grid(format.fit(w.numpy(), factor.importance.numpy()))
    errors, codes = [], []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            slab = CoreSlab.of(w, factor, isa)
            assert slab is not None
            params = {k: torch.as_tensor(np.asarray(v, np.float32)) for k, v in format.fit(w.numpy()).items()}
            slab.feedback(grid, params)
            slab.descend(format, refit=False)
            errors.append(slab.error().numpy())
            codes.append(slab.codes().numpy())
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(errors[0], errors[1])
    np.testing.assert_array_equal(codes[0], codes[1])
    best = CoreSlab.of(w, factor)
    assert best is not None
    best.feedback(grid, params)
    best.descend(format, refit=False)
    np.testing.assert_allclose(errors[0], best.error().numpy(), rtol=0.02)


@pytest.mark.parametrize("cols", [40, 256, 330])
def test_pivoted_order(cols: int) -> None:
    _, factor = problem(1, cols)
    h, mean = factor.hessian, float(factor.hessian.diagonal().mean())
    ridge = factor.added.clamp(min=0.01 * mean)
    found = _pivoted(h, factor.added)
    assert sorted(found.tolist()) == list(range(cols))
    assert (found == _pivoted_by_torch(h, factor.added, ridge, mean)).float().mean() > 0.95
    broken = h.clone()
    broken[3, 3] = -1e3
    assert sorted(_pivoted(broken, factor.added).tolist()) == list(range(cols))


def test_wrong_arrays_are_refused() -> None:
    module = core()
    assert module is not None
    h, v = np.eye(8, dtype=np.float32), np.ones(8, np.float32)
    with pytest.raises(ValueError, match="no permutation"):
        module.Factor(h, h, v, v, np.zeros(8, np.int64))
    factor = module.Factor(h, h, v, v, None)
    with pytest.raises(ValueError, match="weights has shape"):
        module.Slab(np.zeros((2, 4), np.float32), factor, threads=1)
    slab = module.Slab(np.zeros((2, 8), np.float32), factor, threads=1)
    table = np.arange(-8, 8, dtype=np.float32)
    with pytest.raises(ValueError, match="3 blocks do not divide"):
        slab.feedback(table, np.ones((3, 2), np.float32), None)
    with pytest.raises(ValueError, match="outside of the slope"):
        slab.moments(0, 4, np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="no columns"):
        slab.slope(4, 9)


def _error(w: np.ndarray, factors: np.ndarray, grid: Grid, gram: np.ndarray) -> float:
    """What `output_loss` gives, in numpy."""
    scaled = w * factors
    lost = (grid.values(grid.nearest(scaled)) / factors - w).astype(np.float64)
    return float(np.einsum("rc,cd,rd->", lost, gram.astype(np.float64), lost))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_rescaled_columns(name: str) -> None:
    weights, factor = problem(70, 256)
    w, gram = weights.numpy(), factor.hessian.numpy()
    factors = np.exp(np.random.default_rng(2).standard_normal(256) * 0.3).astype(np.float32)
    format = get_format(name)
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float((w * factors).min()), float((w * factors).max()))
    grid = format.grid(format.fit(w * factors, factor.diagonal.numpy()))
    expected = _error(w, factors, grid, gram)
    for isa in ISAS:
        assert output_loss(w, factors, grid, gram, isa=isa) == pytest.approx(expected, rel=2e-3)
    assert output_loss(w, factors, grid, gram, threads=2) == output_loss(w, factors, grid, gram)


def test_a_loss_of_other_shapes_is_refused() -> None:
    weights, factor = problem(4, 64)
    format = get_format("int4-g64")
    grid = format.grid(format.fit(weights.numpy(), None))
    with pytest.raises(ValueError, match="factors has shape"):
        output_loss(weights.numpy(), np.ones(63, np.float32), grid, factor.hessian.numpy())

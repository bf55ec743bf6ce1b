"""Coordinate descent: never worse, ends where no single step helps, and what it stores is what it counted."""

import numpy as np
import pytest
import torch

from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.base import Format, Refittable
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.rounders.column_grid import ColumnGrid, Slab, column_sum, output_error
from bitsmith.quant.rounders.descent import descend
from bitsmith.quant.rounders.hessian import Factor, prepare
from tests.quant.formats.samples import told
from tests.quant.rounders.problems import ALL, NAMES, error, problem


def start(w: np.ndarray, format: Format) -> Slab:
    """A slab rounded to nearest."""
    rows = torch.from_numpy(w)
    params = dict(format.fit(rows, torch.ones(w.shape[1])))
    grid = format.grid(params)
    codes = grid.nearest(rows)
    levels = grid.table[codes.long()].T.contiguous()
    return Slab(
        rows.T.contiguous(), levels, (rows - grid.values(codes)).T.contiguous(), ColumnGrid(grid, w.shape[1]), params
    )


def damped(slab: Slab, factor: Factor) -> np.ndarray:
    """The error that descent lowers, float64 [rows]."""
    h = factor.hessian.numpy() + np.diag(factor.added.numpy())
    return error(slab.error.T.numpy(), np.zeros_like(slab.error.T.numpy()), h)


@pytest.mark.parametrize("format", ALL, ids=NAMES)
def test_every_sweep_lowers_the_error_and_stores_it(format: Format) -> None:
    w, h = problem(rows=6)
    format = told(format, w)
    factor = prepare(h)
    slab = start(w, format)
    before = first = damped(slab, factor)
    for _ in range(3):
        descend(slab, format, factor, refit=True)
        after = damped(slab, factor)
        assert (after <= before * (1 + 1e-5)).all()
        before = after
    assert (after < 0.9 * first).all()
    codes = slab.column_grid.codes(slab.levels).T.numpy()
    params = {name: as_numpy(p) for name, p in slab.params.items()}
    stored = format.grid(params).values(codes)
    assert np.abs(stored - (slab.weights - slab.error).T.numpy()).max() <= 1e-6
    layout = format.params_layout(*w.shape)
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == layout


@pytest.mark.parametrize("name", ["int3-g32", "int2-channel-asym", "q4_k", "int2-g64-asym"])
def test_refitted_scales_lower_the_error_further(name: str) -> None:
    w, h = problem(rows=6)
    format, factor = get_format(name), prepare(h)
    assert isinstance(format, Refittable)
    with_refit, without = start(w, format), start(w, format)
    for _ in range(4):
        descend(with_refit, format, factor, refit=True)
        descend(without, format, factor, refit=False)
    assert damped(with_refit, factor).sum() < 0.99 * damped(without, factor).sum()


def test_it_ends_where_no_other_code_is_better() -> None:
    w, h = problem(rows=3, cols=64)
    format, factor = get_format("int3-g64"), prepare(h)
    slab = start(w, format)
    for _ in range(30):
        descend(slab, format, factor, refit=False)
    least = damped(slab, factor)
    settled = slab.error.clone()
    for column in range(64):
        for level in range(-4, 4):
            slab.error[column] = slab.weights[column] - level * slab.column_grid.scale[0]
            assert (damped(slab, factor) >= least * (1 - 1e-5)).all()
        slab.error[column] = settled[column]


@pytest.mark.parametrize("format", [f for f in ALL if isinstance(f, Refittable)], ids=lambda f: f.name)
def test_projecting_what_is_stored_changes_nothing(format: Format) -> None:
    assert isinstance(format, Refittable)
    w, _ = problem(rows=5, cols=512)
    params = format.fit(w)
    grid = format.grid(params)
    for block in range(grid.scale.shape[1]):
        at = slice(block, block + 1)
        found = format.project(params, at, grid.scale[:, at], None if grid.offset is None else grid.offset[:, at])
        assert np.array_equal(found.scale, grid.scale[:, at])
        assert (found.offset is None) == (grid.offset is None)
        if found.offset is not None and grid.offset is not None:
            assert np.allclose(found.offset, grid.offset[:, at], rtol=1e-6)
        for name, stored in found.params.items():
            assert stored.dtype == params[name].dtype
            assert np.array_equal(format.grid({**params, name: _with(params[name], at, stored)}).scale, grid.scale)


def _with(param: np.ndarray, at: slice, stored: np.ndarray) -> np.ndarray:
    changed = param.copy()
    changed[:, at] = stored
    return changed


def test_sums_of_columns_and_output_errors() -> None:
    w, h = problem(rows=7, cols=300)
    x = torch.from_numpy(w).T.contiguous()
    for n in (1, 64, 300):
        assert np.allclose(column_sum(x[:n]).numpy(), w[:, :n].sum(1, dtype=np.float64), atol=1e-5)
    for order in ("natural", "activation", "pivoted"):
        found = output_error(x, prepare(h, order=order)).numpy()
        assert np.allclose(found, error(w, 0 * w, h), rtol=1e-4)

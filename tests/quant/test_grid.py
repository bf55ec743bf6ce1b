"""Grid: decoding without fused rounding, and the nearest code by definition."""

import ml_dtypes
import numpy as np
import pytest
import torch

from bitsmith.quant.grid import Grid

NF4_LIKE = np.array([-1, -0.7, -0.52, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1])
E4M3 = np.unique(np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32))
E4M3 = E4M3[np.isfinite(E4M3)]
TABLES = {
    "ramp": np.arange(16),
    "signed": np.arange(-8, 8),
    "signed8": np.arange(-128, 128),
    "ternary": np.arange(-1, 2),
    "halves": np.arange(4) + 0.5,
    "nf4": NF4_LIKE,
    "e4m3": E4M3,
    "two": np.array([-3.0, 5.0]),
    "one": np.array([0.0]),
}


def make(name: str, rows: int = 7, cols: int = 64, block: int = 16, offset: bool = False, seed: int = 0) -> Grid:
    rng = np.random.default_rng(seed)
    scale = (rng.standard_normal((rows, cols // block)) * 0.1).astype(np.float32)
    scale[0, 0] = 0
    shift = rng.standard_normal(scale.shape).astype(np.float32) if offset else None
    return Grid(TABLES[name].astype(np.float32), scale, shift, block)


def by_definition(grid: Grid, w: np.ndarray) -> np.ndarray:
    """The search written out: distances to every entry of the table, in float64, from the same float32 quotient."""
    scale = np.repeat(grid.scale, grid.block, axis=1)
    shifted = w if grid.offset is None else w - np.repeat(grid.offset, grid.block, axis=1)
    target = np.divide(shifted, scale, out=np.zeros_like(w), where=scale != 0).astype(np.float64)
    return np.abs(target[:, :, None] - grid.table.astype(np.float64)).argmin(axis=2).astype(np.uint8)


def to_torch(grid: Grid) -> Grid:
    offset = None if grid.offset is None else torch.from_numpy(grid.offset)
    return Grid(torch.from_numpy(grid.table), torch.from_numpy(grid.scale), offset, grid.block)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_nearest_is_the_search_by_definition(name: str, offset: bool) -> None:
    grid = make(name, offset=offset)
    w = np.random.default_rng(1).standard_normal((7, 64)).astype(np.float32)
    codes = grid.nearest(w)
    assert codes.dtype == np.uint8
    assert np.array_equal(codes, by_definition(grid, w))
    assert np.array_equal(to_torch(grid).nearest(torch.from_numpy(w)).numpy(), codes)


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.25])
@pytest.mark.parametrize("name", ["ramp", "signed", "signed8", "ternary", "halves", "e4m3", "two"])
def test_ties_take_the_lower_code_on_both_sides_of_zero(name: str, scale: float) -> None:
    table = TABLES[name].astype(np.float32)
    middles = (table[1:] + table[:-1]) / 2
    grid = Grid(table, np.full((1, 1), scale, np.float32), None, len(middles))
    assert np.array_equal(grid.nearest(middles[None] * np.float32(scale))[0], np.arange(len(middles)))
    above = np.nextafter(middles, np.float32(np.inf))
    assert np.array_equal(grid.nearest(above[None] * np.float32(scale))[0], np.arange(len(middles)) + 1)
    below = np.nextafter(middles, np.float32(-np.inf))
    assert np.array_equal(grid.nearest(below[None] * np.float32(scale))[0], np.arange(len(middles)))


@pytest.mark.parametrize("name", TABLES)
def test_every_code_is_its_own_nearest(name: str) -> None:
    table = TABLES[name].astype(np.float32)
    codes = np.arange(len(table), dtype=np.uint8)[None]
    grid = Grid(table, np.full((1, 1), -2.0, np.float32), None, len(table))
    assert np.array_equal(grid.nearest(grid.values(codes)), codes)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_values_round_the_product_before_the_offset(name: str, offset: bool) -> None:
    grid = make(name, offset=offset)
    codes = np.random.default_rng(2).integers(0, len(grid.table), (7, 64), dtype=np.uint8)
    product = (grid.table[codes].astype(np.float64) * np.repeat(grid.scale, 16, axis=1)).astype(np.float32)
    expected = product if grid.offset is None else product + np.repeat(grid.offset, 16, axis=1)
    assert np.array_equal(grid.values(codes).view(np.uint32), expected.view(np.uint32))
    decoded = to_torch(grid).values(torch.from_numpy(codes)).numpy()
    assert np.array_equal(decoded.view(np.uint32), expected.view(np.uint32))


def test_a_dead_block_has_one_value() -> None:
    for table, code in [(np.arange(-8, 8), 8), (np.array([-1.0, 1.0]), 0), (np.arange(1, 4), 0)]:
        grid = Grid(table.astype(np.float32), np.zeros((1, 1), np.float32), np.full((1, 1), 2.5, np.float32), 4)
        codes = grid.nearest(np.array([[-9.0, 0.0, 2.5, 9.0]], np.float32))
        assert codes.tolist() == [[code] * 4]
        assert grid.values(codes).tolist() == [[2.5] * 4]


def test_extreme_scales_and_weights() -> None:
    tiny = np.float32(1e-45)
    grid = Grid(np.arange(-8, 8, dtype=np.float32), np.array([[tiny, 1e38]], np.float32), None, 4)
    w = np.array([[0, 3 * tiny, -1, 3e38, 3.4e38, -3.4e38, 1e38, 0]], np.float32)
    assert (grid.nearest(w).astype(int) - 8).tolist() == [[0, 3, -8, 7, 3, -3, 1, 0]]


def test_slabs_do_not_matter() -> None:
    """Large matrices are worked on in slabs of rows; the result is that of single rows, one block a row too."""
    for block in (64, 4096, 0):
        grid = make("nf4", rows=40, cols=4096, block=block or 4096, offset=True)
        grid = Grid(grid.table, grid.scale, grid.offset, block)
        w = np.random.default_rng(3).standard_normal((40, 4096)).astype(np.float32)
        codes = grid.nearest(w)
        values = grid.values(codes)
        assert np.array_equal(codes, to_torch(grid).nearest(torch.from_numpy(w)).numpy())
        for row in (0, 17, 39):
            at = slice(row, row + 1)
            single = Grid(grid.table, grid.scale[at], grid.offset[at], block)
            assert np.array_equal(single.nearest(w[at]), codes[at])
            assert np.array_equal(single.values(codes[at]), values[at])


def test_values_carry_gradients_to_scales() -> None:
    grid = to_torch(make("signed"))
    scale = grid.scale.clone().requires_grad_()
    codes = torch.full((7, 64), 10, dtype=torch.uint8)
    Grid(grid.table, scale, None, 16).values(codes).sum().backward()
    assert torch.equal(scale.grad, torch.full_like(scale, 2.0 * 16))

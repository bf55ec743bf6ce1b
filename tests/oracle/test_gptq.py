"""GPTQ against optimal brain quantization written out: one column at a time, the inverse updated after each."""

import numpy as np
import pytest

from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.gptq import gptq
from bitsmith.quant.rounders.hessian import prepare
from tests.quant.rounders.problems import problem


def written_out(
    w: np.ndarray, h: np.ndarray, order: np.ndarray, scale: np.ndarray, offset: np.ndarray, low: int, high: int
) -> np.ndarray:
    """Levels by Frantar et al. 2022, equations 2 and 3, in float64: w [rows, cols], scale and offset [rows, cols]."""
    w = w.astype(np.float64)
    inverse = np.linalg.inv(h.astype(np.float64))
    levels = np.zeros(w.shape)
    for column in order:
        levels[:, column] = np.clip(np.rint((w[:, column] - offset[:, column]) / scale[:, column]), low, high)
        error = w[:, column] - levels[:, column] * scale[:, column] - offset[:, column]
        w -= np.outer(error / inverse[column, column], inverse[column])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1.0  # done with: not used again
    return levels


@pytest.mark.parametrize("order", ["natural", "activation", "pivoted"])
@pytest.mark.parametrize("name", ["int4-g32", "int3-channel", "int2-g64-asym", "int8-g128-asym", "q4_k", "q6_k"])
def test_the_codes_of_optimal_brain_quantization(name: str, order: str) -> None:
    cols = 256
    w, h = problem(rows=5, cols=cols, seed=3)
    format = get_format(name)
    factor = prepare(h, order=order, damping=0.05)
    params = format.fit(w, factor.importance.numpy())
    grid = format.grid(params)
    repeats = cols // grid.scale.shape[1]
    scale = np.repeat(grid.scale, repeats, axis=1).astype(np.float64)
    offset = np.zeros_like(scale) if grid.offset is None else np.repeat(grid.offset, repeats, axis=1)
    low, high = int(grid.table[0]), int(grid.table[-1])
    mean = float(np.diagonal(h).mean())
    levels = written_out(w, h + 0.05 * mean * np.eye(cols), factor.order.numpy(), scale, offset, low, high)
    rounded = gptq(w, format, h, order=order, damping=0.05, sweeps=0)
    assert rounded.report.kept == 0
    assert np.array_equal(rounded.codes.astype(int) + low, levels)

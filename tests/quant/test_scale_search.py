"""What columns count in the search for scales, and how far weights and scales may reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.quant.formats import get_format
from bitsmith.quant.scale_search import Levels, column_weights, f16, grid_error, inverse, search_scale

HALF = 128


def half_seen() -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 [64, 256] and importance [256]: calibration never saw the odd columns, which hold larger ones."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((64, 2 * HALF)).astype(np.float32)
    w[:, 1::2] *= 4
    importance = rng.uniform(0.5, 1.5, 2 * HALF).astype(np.float32)
    importance[1::2] = 0
    return w, importance


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_columns_count_their_share_of_the_mean_and_unseen_ones_a_little(kind) -> None:
    found = column_weights(kind(np.array([0.0, 2.0, 4.0, 2.0], np.float32)))
    assert np.asarray(found).tolist() == pytest.approx([1e-5, 1 + 1e-5, 2 + 1e-5, 1 + 1e-5], rel=1e-6)
    assert column_weights(kind(np.zeros(4, np.float32))) is None


def test_unseen_columns_hardly_sway_the_scales_of_seen_ones() -> None:
    """Against weights of exactly zero there, the seen columns lose less than one part in a thousand."""
    w, importance = half_seen()
    levels, targets = Levels(-8, 7), (-9.0, -8.0, -7.0, 7.0, 8.0)
    x = np.ascontiguousarray(w.reshape(-1, 32).T)

    def seen_error(columns: np.ndarray) -> float:
        weight = np.tile(columns, len(w)).reshape(-1, 32).T
        scale = search_scale(x, weight, levels, targets)
        counted = np.tile(importance, len(w)).reshape(-1, 32).T
        return float(grid_error(x, counted, scale, None, levels).sum(dtype=np.float64))

    counted = column_weights(importance)
    assert counted is not None
    assert seen_error(counted) == pytest.approx(seen_error(importance), rel=1e-3)


def test_a_block_of_unseen_columns_keeps_its_values() -> None:
    w, importance = half_seen()
    importance[:64] = 0
    format = get_format("q4_0")
    grid = format.grid(format.fit(w, importance))
    error = np.square(grid.values(grid.nearest(w)) - w)[:, :64].sum()
    assert error < 0.02 * np.square(w[:, :64]).sum()


def test_scales_saturate_at_the_largest_float16() -> None:
    wide = np.array([65504.0, 65503.0, 1e9, -1e30, 0.1], np.float32)
    assert f16(wide).tolist() == [65504.0, 65504.0, 65504.0, -65504.0, float(np.float16(0.1))]


def test_the_inverse_of_what_is_almost_zero_is_zero() -> None:
    found = inverse(np.array([0.0, 1e-38, -1e-38, 1e-36, -4.0], np.float32))
    assert found.tolist() == pytest.approx([0, 0, 0, 1e36, -0.25])

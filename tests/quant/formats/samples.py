"""Weights that formats must survive, and what every format must do with them."""

from __future__ import annotations

import numpy as np
import torch

from bitsmith.quant.formats.base import Format, NeedsExtent, VectorFormat
from bitsmith.quant.rounders.nearest import nearest


def hostile(rows: int = 12, cols: int = 256) -> np.ndarray:
    """float32 [rows, cols]: ordinary rows, heavy tails, zeros, one sign, subnormals, the largest floats, one spike."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    w[1] = rng.standard_t(2, cols)
    w[2] = 0
    w[3] = np.abs(w[3])
    w[4] = -np.abs(w[4])
    w[5] *= np.float32(1e-42)
    w[6] = np.where(rng.random(cols) < 0.5, np.float32(3.4e38), np.float32(-3.4e38))
    w[7] *= np.float32(1e30)
    w[8] *= np.float32(1e-30)
    w[9] = 0
    w[9, 70] = 5
    w[10, :128] = 0.25
    return w


def told(format: Format, w: np.ndarray) -> Format:
    """The format, told the extent of `w` if it needs that."""
    if isinstance(format, NeedsExtent):
        return format.with_extent(float(w.min()), float(w.max()))
    return format


def check_both_libraries_and_rows(format: Format, w: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """numpy and torch give equal codes and values, single rows the same as all rows. Returns the values."""
    format = told(format, w)
    codes, params = nearest(w, format, importance)
    values = format.grid(params).values(codes)
    layout = format.params_layout(*w.shape)
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == layout
    assert codes.dtype == (np.int32 if isinstance(format, VectorFormat) else np.uint8)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()

    weight = None if importance is None else torch.from_numpy(importance)
    torch_codes, torch_params = nearest(torch.from_numpy(w), format, weight)
    assert np.array_equal(torch_codes.numpy(), codes)
    torch_values = format.grid(torch_params).values(torch_codes).numpy()
    assert np.array_equal(torch_values.view(np.uint32), values.view(np.uint32))

    for row in range(len(w)):
        single, single_params = nearest(w[row : row + 1], format, importance)
        assert np.array_equal(single[0], codes[row])
        assert all(np.array_equal(single_params[name][0], params[name][row]) for name in params)
    return values

"""A toy format: three values a weight, -scale, 0 and scale, with one float32 scale a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Array, Params
from bitsmith.quant.grid import Grid


@dataclass(frozen=True)
class ToyTernary:
    """The scale is 1.5 times the mean magnitude of the row."""

    name: str = "toy-ternary"
    bits: int = 2
    multiple: int = 1

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """One scale a row."""
        return {"scale": ((rows, 1), np.dtype(np.float32))}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """float32 [rows, cols] -> scale, float32 [rows, 1]."""
        xp = array_namespace(w)
        return {"scale": 1.5 * xp.mean(xp.abs(w), axis=1, keepdims=True)}

    def grid(self, params: Params) -> Grid:
        """Three levels."""
        scale = params["scale"]
        return Grid(array_namespace(scale).asarray([-1.0, 0.0, 1.0], dtype=scale.dtype), scale, None, 0)

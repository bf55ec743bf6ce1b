"""Weights and correlated inputs to round them for."""

from __future__ import annotations

import numpy as np

from bitsmith.quant.formats import FORMATS
from bitsmith.quant.grid import Array

ALL = [format for format in FORMATS.values() if "-f16" not in format.name]  # another precision of the same scales
NAMES = [format.name for format in ALL]


def problem(rows: int = 8, cols: int = 256, tokens: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 [rows, cols] and the Hessian float32 [cols, cols] of correlated inputs of uneven size."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cols, cols)) / cols**0.5 + np.eye(cols)
    mixing += 0.3 * rng.standard_normal((cols, 1)) * rng.standard_normal((1, cols)) / cols**0.5
    x = rng.standard_normal((tokens, cols)) @ mixing * np.exp(0.5 * rng.standard_normal(cols))
    w = 0.05 * rng.standard_normal((rows, cols)).astype(np.float32)
    return w, (x.T @ x / tokens).astype(np.float32)


def error(w: np.ndarray, values: Array, h: np.ndarray) -> np.ndarray:
    """e H e^T of each row, float64 [rows]."""
    e = w.astype(np.float64) - np.asarray(values)
    return np.einsum("ri,ij,rj->r", e, h.astype(np.float64), e)

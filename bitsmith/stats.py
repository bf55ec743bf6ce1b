"""Streaming calibration statistics of one linear group's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stats:
    """What was seen of an input of `cols` features over `count` tokens.

    square: [cols] float64, sum of x^2 (llama.cpp's imatrix, the Hessian's diagonal)
    mean_abs, max_abs: [cols] float32
    gram: [cols, cols] float32, sum of x^T x; None where nobody asked for it
    sample: [tokens, cols] float32, rows drawn with a seed; empty where nobody asked for it
    """

    count: int
    square: np.ndarray
    mean_abs: np.ndarray
    max_abs: np.ndarray
    gram: np.ndarray | None
    sample: np.ndarray

    @property
    def importance(self) -> np.ndarray:
        """Mean of x^2 by column, float32 [cols]; what `Format.fit` takes."""
        return (self.square / max(self.count, 1)).astype(np.float32)

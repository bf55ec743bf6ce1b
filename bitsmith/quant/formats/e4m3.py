"""The numbers that the bytes of float8 E4M3 stand for (Micikevicius et al. 2022, "FP8 formats for deep learning")."""

from __future__ import annotations

import numpy as np


def e4m3_values() -> np.ndarray:
    """float32 [256]: of each byte, whose first bit is the sign; 0x7F and 0xFF are NaN."""
    values = e4m3_magnitudes()
    values[0x80:] *= -1
    values[[0x7F, 0xFF]] = np.nan
    return values


def e4m3_magnitudes() -> np.ndarray:
    """float32 [256]: of each byte by its four bits of exponent (bias 7) and three of mantissa; 480 in place of NaN."""
    exponent, mantissa = np.arange(256) >> 3 & 15, np.arange(256) & 7
    normal, small = np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9)
    found: np.ndarray = np.where(exponent > 0, normal, small).astype(np.float32)
    return found

"""The numbers that the bytes of float8 E4M3 stand for (Micikevicius et al. 2022, "FP8 formats for deep learning")."""

from __future__ import annotations

import numpy as np


def e4m3_values() -> np.ndarray:
    """float32 [256]: of each byte. A sign, four bits of exponent (bias 7), three of mantissa; 0x7F and 0xFF are NaN."""
    byte = np.arange(256)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    magnitude = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    values: np.ndarray = np.where(byte & 0x80, -magnitude, magnitude).astype(np.float32)
    values[[0x7F, 0xFF]] = np.nan
    return values

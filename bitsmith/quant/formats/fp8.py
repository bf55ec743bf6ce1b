"""FP8 weights: E4M3 without infinities (Micikevicius et al. 2022, "FP8 formats for deep learning"; E4M3FN).

Of the 256 bit patterns 253 are distinct finite values: two are NaN, and minus zero repeats zero. Codes number
those values upwards, so code 126 is zero and no code means NaN; codecs store the E4M3 byte of each. `nearest` never
yields minus zero, takes the lower value of two that are equally near (a cast rounds to the even
mantissa there; everywhere else the two agree) and saturates at 448 instead of overflowing to NaN.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from bitsmith.quant.formats.codebook import Codebook


def fp8(precision: str = "f32") -> Codebook:
    """E4M3 with one scale a row, absmax / 448; "fp8-bf16" and the like where it is not stored as float32."""
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    negative = range(0xFE, 0x80, -1)  # -448 .. the least below zero; 0xFF is NaN, 0x80 is minus zero
    patterns = (*negative, *range(0x7F))  # 0x7F is NaN
    name = "fp8" if precision == "f32" else f"fp8-{precision}"
    table = tuple(float(values[p]) for p in patterns)
    return Codebook(name, 8, table, patterns, ((0x80, len(negative)),), 0, precision)

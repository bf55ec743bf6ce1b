"""FP8 weights: E4M3 without infinities (Micikevicius et al. 2022, "FP8 formats for deep learning"; E4M3FN).

The 256 bit patterns hold 253 distinct finite values: two patterns are NaN, and minus zero equals zero. Codes number
these values in ascending order, so code 126 is zero and no code means NaN. Codecs store the E4M3 byte of each code.
`nearest` never gives minus zero and saturates at 448 instead of overflowing to NaN. Of two equally near values it takes
the lower one, while a cast takes the even mantissa; otherwise `nearest` equals a cast.
"""

from __future__ import annotations

from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.e4m3 import e4m3_values


def fp8(precision: str = "f32") -> Codebook:
    """E4M3 with one scale per row, absmax / 448. The name is for instance "fp8-bf16" if scales are not float32."""
    values = e4m3_values()
    negative = range(0xFE, 0x80, -1)  # -448 up to the last below zero; 0xFF is NaN, 0x80 is minus zero
    patterns = (*negative, *range(0x7F))  # 0x7F is NaN
    name = "fp8" if precision == "f32" else f"fp8-{precision}"
    table = tuple(float(values[p]) for p in patterns)
    return Codebook(name, 8, table, patterns, ((0x80, len(negative)),), 0, precision)

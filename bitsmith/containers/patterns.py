"""Stored bit patterns of formats whose files do not hold codes: FP8's bytes, bitsandbytes' FP4."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bitsmith.errors import TensorError
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.fourbit import DoublyQuantized
from bitsmith.quant.formats.tensorwide import TensorWide


def to_patterns(codes: np.ndarray, format: Format) -> np.ndarray:
    """Codes uint8 -> the patterns in files, uint8. For most formats these are the codes."""
    codebook = _with_patterns(format)
    if codebook is None:
        return codes
    patterns: np.ndarray = _tables(codebook)[0][codes]
    return patterns


def from_patterns(patterns: np.ndarray, format: Format) -> np.ndarray:
    """The inverse of `to_patterns`, uint8 [rows, cols]. Raises TensorError for a pattern without a value."""
    codebook = _with_patterns(format)
    if codebook is None:
        return patterns
    found = _tables(codebook)[1][patterns]
    if found.size and found.min() < 0:
        row, column = np.argwhere(found < 0)[0]
        raise TensorError(
            f"{format.name} has no value for the pattern {patterns[row, column]:#04x} (NaN) at row {row}, "
            f"column {column}; the file is damaged or from an incompatible program: make it again"
        )
    codes: np.ndarray = found.astype(np.uint8)
    return codes


def _with_patterns(format: Format) -> Codebook | None:
    if isinstance(format, TensorWide):
        return _with_patterns(format.row)
    if isinstance(format, DoublyQuantized):
        return _with_patterns(format.plain)
    if not isinstance(format, Codebook) or format.patterns == tuple(range(1 << format.bits)):
        return None
    return format


@lru_cache
def _tables(codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    """Tables from code to pattern (uint8), and from pattern to code (int16, -1 for none)."""
    back = np.full(1 << codebook.bits, -1, np.int16)
    back[list(codebook.patterns)] = np.arange(len(codebook.patterns))
    for pattern, code in codebook.aliases:
        back[pattern] = code
    return np.array(codebook.patterns, np.uint8), back

"""Codes of blocks scaled by their absmax, from the C++ core: what `FourBit` and `RowAbsmax` call their reference.

Results equal the numpy code of these formats bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from bitsmith.quant.formats.codebook import Codebook
from bitsmith.system.core import core

READ = {"f32": 4, "f16": 2, "bf16": 2}  # bytes of a weight, by the layouts that the core reads


@dataclass(frozen=True)
class Rounded:
    """Rounded rows.

    out: codes uint8 [rows, cols], or patterns two a byte, the first in the upper half; int8 [rows, cols] for rows
    absmax: float32 [rows, blocks], or [rows]
    largest: largest magnitude; NaN or infinite if a weight is, and then the rest means nothing
    squared_error, squared_weight: sums over all weights, float64
    """

    out: np.ndarray
    absmax: np.ndarray
    largest: float
    squared_error: float
    squared_weight: float


def codebook_codes(
    format: Codebook,
    data: np.ndarray,
    layout: str,
    *,
    packed: bool = False,
    order: np.ndarray | None = None,
    scales: np.ndarray | None = None,
) -> Rounded | None:
    """Codes of stored weights `data`, uint8 [rows, bytes], in a format with a table of 16 values.

    packed: patterns, two a byte, instead of codes
    order: int64 [rows], the number of the source row for each output row
    scales: float32 [rows, blocks], what the error is computed with; None for absmax
    Returns None if the core is missing or cannot do it.
    """
    module, width = _able(), READ[layout]
    rows, cols = data.shape[0], data.shape[1] // width
    block = format.block or cols
    if module is None or not data.size or block % 16 or block > 4096:
        return None
    out = np.empty((rows, cols // 2 if packed else cols), np.uint8)
    absmax = np.empty((rows, cols // block), np.float32)
    table, patterns = _tables(format)
    found = module.round_codebook(
        np.ascontiguousarray(data),
        layout,
        block=block,
        table=table,
        patterns=patterns,
        out=out,
        absmax=absmax,
        order=order,
        scales=scales,
    )
    return Rounded(out, absmax, *found)


def row_codes(data: np.ndarray, layout: str, *, order: np.ndarray | None = None) -> Rounded | None:
    """int8 codes of stored weights, with one absmax a row; see `codebook_codes`."""
    module, width = _able(), READ[layout]
    rows, cols = data.shape[0], data.shape[1] // width
    if module is None or not data.size or cols % 16:
        return None
    out, absmax = np.empty((rows, cols), np.int8), np.empty(rows, np.float32)
    found = module.round_rows(np.ascontiguousarray(data), layout, out=out, absmax=absmax, order=order)
    return Rounded(out, absmax, *found)


def _able() -> Any:
    """The core, if its build has these functions; an editable install may have an older one."""
    module = core()
    return module if module is not None and hasattr(module, "round_codebook") else None


@lru_cache
def _tables(format: Codebook) -> tuple[np.ndarray, np.ndarray]:
    return np.array(format.table, np.float32), np.array(format.patterns, np.uint8)

"""How many rows are rounded together, and from how many columns on the memory of matrices [cols, cols] is saved."""

from __future__ import annotations

SLAB_ROWS = 2048  # rows that are rounded at once; a slab takes about ten times the memory of its weights
SLAB_WEIGHTS = 1 << 23  # weights of a slab at most, and of one with WIDE columns half of it
WIDE = 8192  # columns from which on no matrix [cols, cols] is made to correct weights, if these have no more rows
_EVEN = 64  # rows that the C++ core rounds together


def slab_rows(cols: int) -> int:
    """Rows of so many columns that are rounded at once on a CPU."""
    most = SLAB_WEIGHTS if cols < WIDE else SLAB_WEIGHTS // 2
    return min(SLAB_ROWS, max(1, most // cols // _EVEN) * _EVEN)

"""Grid: the values a block of weights may take once its scales are frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

Array = Any  # a numpy array or a torch tensor, used through the array API standard

_CHUNK = 1 << 16  # weights processed at once on numpy buffers, so that temporaries stay in the processor's cache
_COUNTED = 16  # tables up to this size are searched by counting, larger ones by halving


@dataclass(frozen=True)
class Grid:
    """value = table[code] * scale + offset, per block of `block` neighbouring weights of a row.

    table: [levels] float32, finite, ascending; levels <= 256
    scale: [rows, cols // block] float32, finite, may be negative or zero
    offset: the same shape, float32; None if the format has no offset
    block: number of weights that share a scale; 0: a whole row

    All arrays belong to one array namespace (numpy or torch) and one device. A code is an index into the table. If a
    file stores another bit pattern (FP8, FP4), its codec translates.
    """

    table: Array
    scale: Array
    offset: Array | None
    block: int

    def values(self, codes: Array) -> Array:
        """Decode `codes` [rows, cols] uint8 to float32 [rows, cols].

        The product is rounded to float32 before the offset is added (no fused multiply-add), so that
        results equal llama.cpp's `dequantize_row_*` bit for bit.
        """
        first = _first_integer(self.table)

        def chunk(part: Array, scale: Array, offset: Array | None) -> Array:
            xp = array_namespace(scale)
            shape = self._blocks(part.shape)
            if first is None:
                looked_up = xp.take(self.table, xp.reshape(xp.astype(part, xp.int64), (-1,)))
            else:
                looked_up = xp.astype(part, xp.float32) + first
            blocks = xp.reshape(looked_up, shape) * scale[:, :, None]
            if offset is not None:
                blocks = blocks + offset[:, :, None]
            return xp.reshape(blocks, part.shape)

        with np.errstate(over="ignore", invalid="ignore"):  # extreme scales in a file give infinities, not warnings
            return self._by_rows(codes, array_namespace(self.scale).float32, chunk)

    def nearest(self, w: Array) -> Array:
        """The code whose value lies nearest to each weight: float32 [rows, cols] -> uint8 [rows, cols].

        The distance is measured between (w - offset) / scale, rounded to float32, and the table's entries. If two
        entries are equally near, the lower code is chosen, for either sign of the scale. A block with scale zero has
        only one value: its weights get the lowest code whose entry is nearest to zero. Weights beyond the ends of the
        table get its first or last code. Weights must be finite.
        """
        first = _first_integer(self.table)
        xp = array_namespace(w)
        middles = (self.table[1:] + self.table[:-1]) * 0.5

        def chunk(part: Array, scale: Array, offset: Array | None) -> Array:
            blocks = xp.reshape(part, self._blocks(part.shape))
            if offset is not None:
                blocks = blocks - offset[:, :, None]
            divisor = xp.where(scale != 0, scale, xp.full_like(scale, float("inf")))  # x / inf is zero
            target = xp.reshape(blocks / divisor[:, :, None], part.shape)
            if first is not None:
                return _round(xp, target, first, self.table.shape[0])
            search = _count if self.table.shape[0] <= _COUNTED else _halve
            return search(xp, target, middles)

        with np.errstate(over="ignore"):  # a weight far beyond the table becomes infinite and gets an end code
            return self._by_rows(w, xp.uint8, chunk)

    def _blocks(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        rows, cols = shape
        block = self.block or cols
        return rows, cols // block, block

    def _by_rows(self, x: Array, dtype: Any, chunk: Callable[[Array, Array, Array | None], Array]) -> Array:
        """Apply `chunk` to slabs of rows of `x` with their scales and offsets. Torch tensors are one slab."""
        rows, cols = x.shape
        step = max(1, _CHUNK // max(1, cols))
        if not is_numpy_array(x) or rows <= step:
            return chunk(x, self.scale, self.offset)
        out = np.empty((rows, cols), dtype)
        for start in range(0, rows, step):
            at = slice(start, start + step)
            out[at] = chunk(x[at], self.scale[at], None if self.offset is None else self.offset[at])
        return out


def _first_integer(table: Array) -> float | None:
    """The first entry of a table of consecutive integers; None for any other table."""
    xp = array_namespace(table)
    first = float(table[0])
    ramp = xp.arange(table.shape[0], dtype=table.dtype, device=table.device) + first
    return first if first == round(first) and bool(xp.all(ramp == table)) else None


def _round(xp: Any, target: Array, first: float, levels: int) -> Array:
    """Nearest of the consecutive integers from `first`; a half goes down. Gives the same as a table search."""
    bounded = xp.clip(target, first, first + (levels - 1))
    rounded = xp.round(bounded)  # halves to even
    down = rounded - bounded == 0.5  # exact: both are below 2**9
    return xp.astype(rounded - first, xp.uint8) - xp.astype(down, xp.uint8)


def _count(xp: Any, target: Array, middles: Array) -> Array:
    """Number of `middles` that lie strictly below each target."""
    codes = xp.zeros(target.shape, dtype=xp.uint8, device=target.device)
    for i in range(middles.shape[0]):
        codes += xp.astype(target > middles[i], xp.uint8)
    return codes


def _halve(xp: Any, target: Array, middles: Array) -> Array:
    """The same as `_count`, by binary search, for longer tables."""
    endless = xp.full((256 - middles.shape[0],), float("inf"), dtype=middles.dtype, device=middles.device)
    padded = xp.concat([middles, endless])
    flat = xp.reshape(target, (-1,))
    codes = xp.zeros(flat.shape, dtype=xp.int64, device=target.device)
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        codes += step * xp.astype(flat > xp.take(padded, codes + (step - 1)), xp.int64)
    return xp.reshape(xp.astype(codes, xp.uint8), target.shape)

"""VectorGrid: the values that vectors of eight weights may take, where one code stands for a whole vector.

It is the second kind of grid beside `Grid`: value = levels(code) * scale, where the levels of a code are a vector from
a code book instead of one entry of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from bitsmith.quant.grid import Array

VECTOR = 8  # weights of a code
_CHUNK = 1 << 13  # vectors decoded at once, so that temporaries stay in the processor's cache


@dataclass(frozen=True)
class CodeBook:
    """Vectors of levels by code.

    name: name of the ggml type
    points: name of the class of the gguf package that has the points; they have 4 or 8 weights
    index_bits: bits of the number of a point
    halves: points of a code: 2 if they have 4 weights
    signed: whether a bit for each weight says that it is negative
    even: whether the number of negative weights is even
    shifted: whether one bit says that the levels are shifted by -1/8, not by 1/8

    A code has, from the lowest bits on, the numbers of its points, then its signs or its shift.
    """

    name: str
    points: str
    index_bits: int
    halves: int
    signed: bool = False
    even: bool = False
    shifted: bool = False

    @property
    def point_bits(self) -> int:
        """Bits of the numbers of points; signs or the shift are above them."""
        return self.index_bits * self.halves

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.point_bits + (VECTOR if self.signed else 0) + self.shifted

    def table(self) -> np.ndarray:
        """All points: float32 [2^index_bits, 8 / halves]."""
        return _points(self.points)

    def levels(self, codes: Array) -> Array:
        """The levels of codes: int32 [...] -> float32 [..., 8]."""
        xp = array_namespace(codes)
        where = device(codes)
        table = xp.asarray(self.table(), device=where)
        wide = xp.astype(codes, xp.int64)
        shifts = xp.asarray([self.index_bits * half for half in range(self.halves)], dtype=xp.int64, device=where)
        index = (wide[..., None] >> shifts) & ((1 << self.index_bits) - 1)
        found = xp.reshape(xp.take(table, xp.reshape(index, (-1,)), axis=0), (*codes.shape, VECTOR))
        if self.signed:
            weights = xp.asarray(list(range(VECTOR)), dtype=xp.int64, device=where) + self.point_bits
            negative = (wide[..., None] >> weights) & 1
            found = found * (1.0 - 2.0 * xp.astype(negative, xp.float32))
        if self.shifted:
            found = found + (0.125 - 0.25 * xp.astype(((wide >> self.point_bits) & 1)[..., None], xp.float32))
        return found


@lru_cache
def _points(name: str) -> np.ndarray:
    """The points of a class of the gguf package. It decompresses them once."""
    from gguf import quants

    book: Any = getattr(quants, name)
    if book.grid is None:
        book.init_grid()
    return np.array(book.grid, np.float32).reshape(book.grid_shape)


@dataclass(frozen=True)
class VectorGrid:
    """value = (levels(code) + shift) * scale, for vectors of eight neighbouring weights of a row.

    scale: [rows, cols // block] float32, finite, not negative
    shift: the same shape, float32; None if there is none
    block: number of weights that share a scale, a multiple of 8

    All arrays belong to one array namespace (numpy or torch) and one device.
    """

    book: CodeBook
    scale: Array
    shift: Array | None
    block: int

    def values(self, codes: Array) -> Array:
        """Decode `codes` [rows, cols / 8] int32 to float32 [rows, cols], bit-equal to llama.cpp."""
        xp = array_namespace(codes)
        rows, vectors = codes.shape
        step = max(1, _CHUNK // max(1, vectors))
        with np.errstate(over="ignore", invalid="ignore"):
            found = [self._decode(codes, slice(at, min(at + step, rows))) for at in range(0, max(rows, 1), step)]
        return found[0] if len(found) == 1 else xp.concat(found, axis=0)

    def levels(self, codes: Array, rows: slice = slice(None)) -> Array:
        """Shifted levels of the codes of some rows: int32 [n, cols / 8] -> float32 [n, cols]."""
        xp = array_namespace(codes)
        levels = xp.reshape(self.book.levels(codes), (codes.shape[0], -1, self.block))
        if self.shift is not None:
            levels = levels + self.shift[rows][:, :, None]
        return xp.reshape(levels, (codes.shape[0], codes.shape[1] * VECTOR))

    def _decode(self, codes: Array, rows: slice) -> Array:
        xp = array_namespace(codes)
        levels = self.levels(codes[rows], rows)
        blocks = xp.reshape(levels, (levels.shape[0], -1, self.block)) * self.scale[rows][:, :, None]
        return xp.reshape(blocks, levels.shape)

    def nearest(self, w: Array, columns: Array | None = None) -> Array:
        """The codes with the smallest squared error: float32 [rows, cols] -> int32 [rows, cols / 8].

        columns: [cols] float32, > 0, the weight of each column's squared error; None: all count the same
        If several codes are equally near, the one with the smallest point numbers is chosen. Weights must be finite.
        """
        from bitsmith.quant.book_search import nearest_codes

        return nearest_codes(self, w, columns)

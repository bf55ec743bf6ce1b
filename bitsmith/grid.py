"""Grid: the values a block of weights may take once its scales are frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

Array = Any  # a numpy array or a torch tensor: whatever the array API standard describes


@dataclass(frozen=True)
class Grid:
    """value = table[code] * scale + offset, per block of `block` neighbouring weights of a row.

    table: [levels] float32, ascending; levels <= 256
    scale: [rows, cols // block] float32, may be negative or zero
    offset: the same shape, float32; None where it is zero by construction
    block: weights that share a scale; a whole row has block == cols

    All arrays belong to one array namespace (numpy or torch) and one device.
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
        xp = array_namespace(self.scale)
        rows, cols = codes.shape
        looked_up = xp.take(self.table, xp.reshape(xp.astype(codes, xp.int64), (-1,)))
        blocks = xp.reshape(looked_up, (rows, cols // self.block, self.block)) * self.scale[:, :, None]
        if self.offset is not None:
            blocks = blocks + self.offset[:, :, None]
        return xp.reshape(blocks, (rows, cols))

    def nearest(self, w: Array) -> Array:
        """The code whose value lies nearest to each weight: float32 [rows, cols] -> uint8 [rows, cols].

        Between two equally near values the one of lower code is taken. A block whose scale is zero has
        one value only; all its weights get the code whose table entry is nearest to zero, the lowest of them.
        Weights must be finite.
        """
        xp = array_namespace(w)
        rows, cols = w.shape
        blocks = xp.reshape(w, (rows, cols // self.block, self.block))
        if self.offset is not None:
            blocks = blocks - self.offset[:, :, None]
        alive = self.scale != 0
        inverse = xp.where(
            alive, 1.0 / xp.where(alive, self.scale, xp.ones_like(self.scale)), xp.zeros_like(self.scale)
        )
        target = xp.reshape(blocks * inverse[:, :, None], (-1,))
        middles = (self.table[1:] + self.table[:-1]) * 0.5
        # side="left": a target that equals a midpoint stays with the lower code
        return xp.reshape(xp.astype(xp.searchsorted(middles, target), xp.uint8), (rows, cols))

"""Formats with a fixed table of values and one scale per block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.affine import extents
from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.core_ladder import Ladder, fitted
from bitsmith.quant.formats.precision import PRECISIONS, constant, stored, to_float32
from bitsmith.quant.formats.search import search, usable
from bitsmith.quant.grid import Array, Grid


@dataclass(frozen=True)
class Codebook:
    """value = scale * table[code]; scale is absmax / largest table entry.

    bits: bits of the stored pattern
    table: ascending, finite; fewer than 2**bits entries if some patterns are unused
    patterns: the stored bit pattern of each code, for codecs
    aliases: further patterns that a file may hold, each with its code (minus zero)
    block: number of weights that share a scale; 0: a whole row
    precision: precision of the scales: "f32", "f16", "bf16"

    Parameters: "scale" [rows, blocks] in that precision.
    """

    name: str
    bits: int
    table: tuple[float, ...]
    patterns: tuple[int, ...]
    aliases: tuple[tuple[int, int], ...]
    block: int
    precision: str = "f32"

    @property
    def scale_dtype(self) -> np.dtype:
        """Stored precision of the scales."""
        return PRECISIONS[self.precision]

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.block or 1

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """scale: [rows, blocks] in `precision`. Raises UnsupportedError if blocks do not divide the row."""
        return {"scale": ((rows, check_row(self.name, cols, self.multiple) // (self.block or cols)), self.scale_dtype)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """Scales from absmax; with importance from the best of several clip ratios of absmax, see `search`."""
        check_row(self.name, w.shape[1], self.multiple)
        found = fitted(self, w, importance) if usable(importance) else None
        return self.fit_reference(w, importance) if found is None else found

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """`fit` without the core. It defines the results, and handles torch tensors."""
        if usable(importance):
            return search(w, importance, self._candidates, self.grid)
        return self.from_extent(*extents(w, self.block))

    def from_extent(self, low: Array, high: Array) -> Params:
        """Parameters for blocks whose weights lie in low..high, float32 [rows, blocks] each."""
        xp = array_namespace(low)
        scale = xp.maximum(xp.abs(low), xp.abs(high)) / max(-self.table[0], self.table[-1])
        return {"scale": stored(scale, self.scale_dtype)}

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; scales are never negative."""
        kept = array_namespace(scale).clip(scale, 0.0, None)
        return StoredScales({"scale": kept}, kept, None)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        scale = to_float32(params["scale"])
        return Grid(constant(_as_array(self.table), scale), scale, None, self.block)

    @property
    def ladder(self) -> Ladder:
        """See `Laddered.ladder`."""
        top = max(-self.table[0], self.table[-1])
        return Ladder(self.table, self._ratios, False, top, float("inf"), self.precision, self.block)

    @property
    def _ratios(self) -> tuple[float, ...]:
        return tuple(1.0 - 0.025 * step for step in range(21))

    def _candidates(self, w: Array) -> Iterator[Params]:
        low, high = extents(w, self.block)
        for ratio in self._ratios:
            yield self.from_extent(low * ratio, high * ratio)


@lru_cache
def _as_array(table: tuple[float, ...]) -> np.ndarray:
    array = np.array(table, np.float32)
    array.flags.writeable = False
    return array

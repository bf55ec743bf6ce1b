"""Integers in groups with a scale and a real offset, as MLX stores them: value = scale * q + bias, q in 0 .. 2^b - 1.

Scale and bias follow mlx's `quantize` (mlx/ops.cpp, mode "affine"): the end of the range that is farther from zero is
the bias, the scale has the sign that points from there to the other end, and it is moved so that zero is a value. The
codes are chosen after both are rounded to their stored precision, where mlx chooses them before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.affine import extents
from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.precision import PRECISIONS, constant, stored, to_float32
from bitsmith.quant.formats.search import search, usable
from bitsmith.quant.grid import Array, Grid

_SMALLEST = 1e-7  # mlx's smallest scale


@dataclass(frozen=True)
class AffineBias:
    """Integers of `bits` bits; each group of a row shares a scale and a bias.

    bits: 2 to 8
    group: number of weights that share a scale
    precision: precision of scales and biases: "f32", "f16", "bf16"

    Parameters: "scale" and "bias" [rows, groups] in that precision; scales may be negative.
    """

    bits: int
    group: int
    precision: str = "bf16"

    @property
    def name(self) -> str:
        """For instance "int4-g64-bias", and "int4-g64-bias-f16" if the precision is not bfloat16."""
        return f"int{self.bits}-g{self.group}-bias" + ("" if self.precision == "bf16" else f"-{self.precision}")

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.group

    @property
    def dtype(self) -> np.dtype:
        """Stored precision of scales and biases."""
        return PRECISIONS[self.precision]

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """scale, bias: [rows, groups] each. Raises UnsupportedError if groups do not divide the row."""
        shape = (rows, check_row(self.name, cols, self.group) // self.group)
        return {"scale": (shape, self.dtype), "bias": (shape, self.dtype)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """mlx's rule; with importance from the best of several ranges, see `search`."""
        check_row(self.name, w.shape[1], self.group)
        if usable(importance):
            return search(w, importance, self._candidates, self.grid)
        return self._from_extent(*extents(w, self.group))

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        assert offset is not None
        kept = stored(scale, self.dtype)
        bias = stored(offset - self._half * to_float32(kept), self.dtype)
        value = to_float32(kept)
        return StoredScales({"scale": kept, "bias": bias}, value, to_float32(bias) + self._half * value)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`. The table is centred, and the offset makes up for it."""
        scale = to_float32(params["scale"])
        return Grid(
            constant(_table(self.bits), scale), scale, to_float32(params["bias"]) + self._half * scale, self.group
        )

    @property
    def _half(self) -> float:
        return float(1 << (self.bits - 1))

    def _from_extent(self, low: Array, high: Array) -> Params:
        xp = array_namespace(low)
        farther = xp.abs(low) > xp.abs(high)
        size = xp.clip((high - low) / float((1 << self.bits) - 1), _SMALLEST, None)
        scale = xp.where(farther, size, -size)
        edge = xp.where(farther, low, high)
        steps = xp.round(edge / scale)
        moved = xp.where(steps != 0, steps, xp.ones_like(steps))
        scale = xp.where(steps != 0, edge / moved, scale)
        bias = xp.where(steps != 0, edge, xp.zeros_like(edge))
        return {"scale": stored(scale, self.dtype), "bias": stored(bias, self.dtype)}

    def _candidates(self, w: Array) -> Iterator[Params]:
        low, high = extents(w, self.group)
        for step in range(31 if self.bits == 2 else 21):
            ratio = 1.0 - 0.025 * step
            yield self._from_extent(low * ratio, high * ratio)


@lru_cache
def _table(bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    table = np.arange(-half, half).astype(np.float32)
    table.flags.writeable = False
    return table

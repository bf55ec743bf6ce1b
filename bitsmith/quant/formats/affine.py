"""Plain integer formats: int2..int8 in groups or whole rows, symmetric or with a zero point.

Symmetric: value = scale * q with q in -2^(b-1) .. 2^(b-1) - 1 and scale = absmax / (2^(b-1) - 1), the usual
absmax rule. absmax never uses the lowest level, but the weighted search does: up to 4 bits its scales are negative
where the largest weight is positive, so that this weight may have the lowest level (as in ggml's Q4_0 and AutoRound).
Asymmetric (min-max): value = scale * (q - zero) with q and zero in 0 .. 2^b - 1. The range is widened to include zero,
so zero is always a value. As a grid: scale * (q - 2^(b-1)) + scale * (2^(b-1) - zero).

Scales of groups are stored as bfloat16. It has float32's range, so scales do not overflow or underflow as in float16
(int8 groups below 1e-6, int4 above 458,000). Its coarser steps cost little, because codes are chosen after the scale is
rounded: on the reference model 0.3 % more error than with float32 scales for int8, and none for int4 and below.
bfloat16 scales from 7.6e-6 to 65504 are exact in float16 too, so other file formats can hold them unchanged.
A scale of a whole row is float32. If a container stores another precision, the format's name contains it:
int4-g128-f16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.core_ladder import Ladder, fitted
from bitsmith.quant.formats.precision import PRECISIONS, UINT8, constant, stored, to_float32
from bitsmith.quant.formats.search import search, usable
from bitsmith.quant.grid import Array, Grid

_SIGNED_BITS = 4  # the most bits of formats with negative scales; with 8 the lowest level adds nothing
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Affine:
    """Integers of `bits` bits. Each group of a row shares a scale (and a zero point).

    bits: 2, 3, 4 or 8
    group: number of weights that share a scale; 0: a whole row
    asymmetric: whether there is a zero point
    precision: precision of the scales: "f32", "f16", "bf16"; "" is bfloat16, or float32 for whole rows

    Parameters: "scale" [rows, groups] in that precision, and "zero" [rows, groups] uint8.
    """

    bits: int
    group: int
    asymmetric: bool = False
    precision: str = ""

    def __post_init__(self) -> None:
        if self.precision == ("bf16" if self.group else "f32"):  # the usual precision is ""
            object.__setattr__(self, "precision", "")

    @property
    def name(self) -> str:
        """As in recipes: "int4-g128", "int8-channel-asym"."""
        scope = f"g{self.group}" if self.group else "channel"
        precision = f"-{self.precision}" if self.precision else ""
        return f"int{self.bits}-{scope}{precision}" + ("-asym" if self.asymmetric else "")

    @property
    def integer_ranges(self) -> dict[str, tuple[int, int]]:
        """Range of the zero points, if there are any."""
        return {"zero": (0, (1 << self.bits) - 1)} if self.asymmetric else {}

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.group or 1

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """scale: bfloat16, or float32 for whole rows; zero: uint8; [rows, groups] each.

        Raises UnsupportedError if groups do not divide the row.
        """
        shape = (rows, check_row(self.name, cols, self.multiple) // (self.group or cols))
        layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {"scale": (shape, self.scale_dtype)}
        return layout | ({"zero": (shape, UINT8)} if self.asymmetric else {})

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """Scales from absmax or min-max; with importance from the best of several clip ratios, see `search`."""
        check_row(self.name, w.shape[1], self.multiple)
        found = fitted(self, w, importance) if usable(importance) else None
        return self.fit_reference(w, importance) if found is None else found

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """`fit` without the core. It defines the results, and handles torch tensors."""
        if usable(importance):
            return search(w, importance, self._candidates, self.grid)
        return self.from_extent(*extents(w, self.group))

    def from_extent(self, low: Array, high: Array) -> Params:
        """Parameters for blocks whose weights lie in low..high, float32 [rows, groups] each.

        Extents near float32's largest value are narrowed, so that a scale or zero point that is rounded up does not
        overflow.
        """
        xp = array_namespace(low)
        top = self._top
        if not self.asymmetric:
            scale = xp.maximum(xp.abs(low), xp.abs(high)) / top
            return {"scale": stored(xp.clip(scale, None, _largest_scale(top)), self.scale_dtype)}
        limit = _limit(top)
        low, high = xp.clip(low, -limit, limit), xp.clip(high, -limit, limit)
        low, high = xp.clip(low, None, 0.0), xp.clip(high, 0.0, None)
        scale = stored(high / top - low / top, self.scale_dtype)
        divisor = to_float32(scale)
        divisor = xp.where(divisor > 0, divisor, xp.ones_like(divisor))
        zero = xp.clip(xp.round(-low / divisor), 0.0, float(top))
        return {"scale": scale, "zero": xp.astype(zero, xp.uint8)}

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; scales are negative if `signed` only."""
        xp = array_namespace(scale)
        largest = _largest_scale(self._top)
        kept = stored(xp.clip(scale, -largest if self.signed else 0.0, largest), self.scale_dtype)
        value = to_float32(kept)
        if not self.asymmetric or offset is None:
            return StoredScales({"scale": kept}, value, None)
        half = 1 << (self.bits - 1)
        divisor = xp.where(value > 0, value, xp.ones_like(value))
        zero = xp.clip(xp.round(half - offset / divisor), 0.0, float(self._top))
        return StoredScales({"scale": kept, "zero": xp.astype(zero, xp.uint8)}, value, (half - zero) * value)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        scale = to_float32(params["scale"])
        offset = ((1 << (self.bits - 1)) - to_float32(params["zero"])) * scale if self.asymmetric else None
        return Grid(constant(_table(self.bits), scale), scale, offset, self.group)

    @property
    def ladder(self) -> Ladder:
        """See `Laddered.ladder`."""
        top, table = self._top, tuple(float(level) for level in _table(self.bits))
        most = _limit(top) if self.asymmetric else _largest_scale(top)
        precision = self.precision or ("bf16" if self.group else "f32")
        return Ladder(table, self._ratios, self.asymmetric, float(top), most, precision, self.group, self.signed)

    @property
    def _ratios(self) -> tuple[float, ...]:
        return tuple(1.0 - 0.025 * step for step in range(31 if self.bits == 2 else 21))

    def _candidates(self, w: Array) -> Iterator[Params]:
        low, high = extents(w, self.group)
        for ratio in self._ratios:
            params = self.from_extent(low * ratio, high * ratio)
            yield params if ratio == 1.0 else self.turned(params, low, high)

    def turned(self, params: Params, low: Array, high: Array) -> Params:
        """Symmetric parameters with the sign that gives the largest weight of each block the lowest level.

        low, high: the extents of blocks, float32 [rows, groups]. Parameters of formats that are not `signed` stay.
        """
        if not self.signed:
            return params
        xp = array_namespace(low)
        return {"scale": xp.where(high > -low, -params["scale"], params["scale"])}

    @property
    def signed(self) -> bool:
        """Whether scales may be negative: where the lowest level is worth it."""
        return not self.asymmetric and self.bits <= _SIGNED_BITS

    @property
    def _top(self) -> int:
        """Number of steps from zero (asymmetric: from the smallest weight) to the largest weight."""
        return (1 << self.bits) - 1 if self.asymmetric else (1 << (self.bits - 1)) - 1

    @property
    def scale_dtype(self) -> np.dtype:
        """Stored precision of the scales."""
        return PRECISIONS[self.precision or ("bf16" if self.group else "f32")]


def extents(w: Array, block: int) -> tuple[Array, Array]:
    """Smallest and largest weight of each block (0: each row): float32 [rows, cols] -> two of [rows, blocks]."""
    xp = array_namespace(w)
    rows, cols = w.shape
    blocks = xp.reshape(w, (rows, cols // (block or cols), block or cols))
    return xp.min(blocks, axis=2), xp.max(blocks, axis=2)


def _limit(top: int) -> float:
    """The largest weight whose scale and zero point, rounded up, do not overflow."""
    return _LARGEST * (1 - 2.0**-7) * top / (top + 1)


@lru_cache
def _largest_scale(top: int) -> float:
    """The largest bfloat16 whose product with `top` is finite in float32."""
    scale = np.array([_LARGEST / top], np.float32)
    return float((scale.view(np.uint32) & 0xFFFF0000).view(np.float32)[0])


@lru_cache
def _table(bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    table = np.arange(-half, half).astype(np.float32)
    table.flags.writeable = False
    return table

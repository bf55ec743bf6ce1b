"""Small floats with one scale byte a block: NVFP4 with a scale of the tensor, and MXFP8.

NVFP4 (NVIDIA, "Introducing NVFP4", and compressed-tensors' nvfp4-pack-quantized): E2M1 values, an E4M3 scale for 16
weights, and one float32 for the tensor by which the scales are divided: 448 * 6 / absmax.
MXFP8 (OCP Microscaling Formats v1.0): E4M3 values, an E8M0 scale (a power of two) for 32 weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace, device

from bitsmith.errors import UsageError
from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.e4m3 import e4m3_values
from bitsmith.quant.formats.fp8 import fp8
from bitsmith.quant.formats.precision import FLOAT32, UINT8, constant
from bitsmith.quant.formats.search import search, usable
from bitsmith.quant.grid import Array, Grid

E2M1 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # -0 and +0
_LARGEST_SCALE = 448.0  # of E4M3
_REACH = (0, -1, 1, -2, 2)  # steps from the byte for absmax that are tried
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ByteScaled:
    """value = table[code] * scale(byte) / divisor.

    name: "nvfp4-tensor", "mxfp8"
    table: ascending values of the codes
    block: number of weights that share a scale
    scales: the scale of each byte from 0 on, ascending, float32
    wide: whether there is a divisor for the whole tensor; if not, it is 1 and not stored
    low, high: the tensor's extent; None until `with_extent`. Only `fit` of a wide format needs them; not compared

    Parameters: "scale" uint8 [rows, blocks]; of a wide format "divisor" float32 [rows, 1], the same in every row.
    """

    name: str
    bits: int
    table: tuple[float, ...]
    block: int
    scales: tuple[float, ...]
    wide: bool
    shares_extent: bool = False
    low: float | None = field(default=None, compare=False)
    high: float | None = field(default=None, compare=False)

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.block

    def with_extent(self, low: float, high: float) -> ByteScaled:
        """The same format for a tensor whose smallest weight is `low` and largest is `high`."""
        return replace(self, low=low, high=high) if self.wide else self

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """See `Format.params_layout`. Raises UnsupportedError if blocks do not divide the row."""
        blocks = check_row(self.name, cols, self.block) // self.block
        layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {"scale": ((rows, blocks), UINT8)}
        return layout | ({"divisor": ((rows, 1), FLOAT32)} if self.wide else {})

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """The byte for absmax and its neighbours are tried; each block keeps that with the least error.

        Raises UsageError for a wide format before `with_extent`.
        """
        check_row(self.name, w.shape[1], self.block)
        xp = array_namespace(w)
        divisor = self._divisor(w)
        if not usable(importance):
            importance = xp.ones((w.shape[1],), dtype=xp.float32, device=device(w))
        one = divisor[:1]

        def candidates(rows: Array) -> Iterator[Params]:
            blocks = xp.reshape(rows, (rows.shape[0], -1, self.block))
            wanted = xp.max(xp.abs(blocks), axis=2) / self.table[-1] * one
            start = xp.searchsorted(self._scales_like(rows), xp.reshape(wanted, (-1,)))
            start = xp.reshape(start, wanted.shape)
            for step in _REACH:
                yield {"scale": xp.astype(xp.clip(start + step, 0, len(self.scales) - 1), xp.uint8)}

        found = search(w, importance, candidates, lambda params: self._grid(params["scale"], one))
        return {**found, "divisor": divisor} if self.wide else found

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`: the nearest scale that is not negative; the divisor does not change."""
        xp = array_namespace(scale)
        divisor = params["divisor"] if self.wide else xp.ones_like(scale[:, :1])
        table = self._scales_like(scale)
        wanted = xp.reshape(scale * divisor, (-1,))
        above = xp.clip(xp.searchsorted(table, wanted), 1, len(self.scales) - 1)
        nearer = wanted - xp.take(table, above - 1) < xp.take(table, above) - wanted
        byte = xp.reshape(xp.astype(xp.where(nearer, above - 1, above), xp.uint8), scale.shape)
        return StoredScales({"scale": byte}, self._values(byte, divisor), None)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        byte = params["scale"]
        xp = array_namespace(byte)
        one = xp.ones((byte.shape[0], 1), dtype=xp.float32, device=device(byte))
        return self._grid(byte, params["divisor"] if self.wide else one)

    def _grid(self, byte: Array, divisor: Array) -> Grid:
        scale = self._values(byte, divisor)
        return Grid(constant(_as_array(self.table), scale), scale, None, self.block)

    def _values(self, byte: Array, divisor: Array) -> Array:
        xp = array_namespace(byte)
        found = xp.take(self._scales_like(byte), xp.reshape(xp.astype(byte, xp.int64), (-1,)))
        return xp.reshape(found, byte.shape) / divisor

    def _scales_like(self, like: Array) -> Array:
        return array_namespace(like).asarray(_as_array(self.scales), device=device(like))

    def _divisor(self, w: Array) -> Array:
        """float32 [rows, 1]: compressed-tensors' `generate_gparam`; 1 for a format without."""
        xp = array_namespace(w)
        ones = xp.ones((w.shape[0], 1), dtype=xp.float32, device=device(w))
        if not self.wide:
            return ones
        if self.low is None or self.high is None:
            raise UsageError(
                f"{self.name} has one scale for the whole tensor and needs the tensor's extent; first call "
                "format.with_extent(low, high) with its smallest and largest weight"
            )
        largest = np.float32(max(-self.low, self.high, _TINY))
        with np.errstate(over="ignore"):
            divisor = np.float32(_LARGEST_SCALE * self.table[-1]) / largest
        return ones * float(divisor if np.isfinite(divisor) else np.float32(1.0))


@lru_cache
def _as_array(values: tuple[float, ...]) -> np.ndarray:
    array = np.array(values, np.float32)
    array.flags.writeable = False
    return array


_E4M3 = e4m3_values()[:0x7F]  # 0 up to 448
_E8M0 = np.ldexp(np.float32(1.0), np.arange(255) - 127).astype(np.float32)

NVFP4_TENSOR = ByteScaled("nvfp4-tensor", 4, E2M1, 16, tuple(_E4M3.tolist()), True, shares_extent=True)
MXFP8 = ByteScaled("mxfp8", 8, fp8().table, 32, tuple(_E8M0.tolist()), False)

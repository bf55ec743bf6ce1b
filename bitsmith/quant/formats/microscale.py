"""MXFP4 and NVFP4 as ggml stores them: E2M1 values with a power-of-two or an E4M3 scale.

Values: OCP Microscaling Formats (MX) Specification v1.0 (E2M1, E8M0); NVFP4 without its tensor scale, as in
ggml-quants.c (`dequantize_row_mxfp4`, `dequantize_row_nvfp4`) of llama.cpp. As there, tables hold twice the E2M1
values, and scales are halved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from bitsmith.quant.formats.base import Params, StoredScales
from bitsmith.quant.formats.core_fit import Search, fitted
from bitsmith.quant.formats.e4m3 import e4m3_magnitudes
from bitsmith.quant.formats.precision import UINT8
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.scale_search import Levels, fit_chunks, grid_error

# codes are in ascending order (7 is -0, 8 is +0); the codec converts to sign and magnitude
E2M1_TWICE = (-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12)
E2M1_LEVELS = Levels(-12, 12, E2M1_TWICE)


def _half_e8m0() -> np.ndarray:
    """2^(e - 128) for each byte e, float32 [256]. All are exact; the first two are denormal."""
    return np.ldexp(np.float32(1.0), np.arange(256) - 128).astype(np.float32)


def _half_ue4m3() -> np.ndarray:
    """Half the value of each E4M3 byte, as ggml reads it: float32 [256].

    Bytes 0x80..0xff have the values of 0x00..0x7f. 0x7f is NaN in E4M3 and 0 here, as in ggml, but 0xff is 480 / 2.
    """
    values = e4m3_magnitudes() * np.float32(0.5)
    values[0x7F] = 0.0
    return values


@dataclass(frozen=True)
class MicroScaled:
    """value = scales[byte] * level, with a table of the scale of each of the 256 bytes.

    param: name of the stored byte
    block: number of weights that share a scale
    multiple: number of weights in a ggml block
    top: highest byte that `fit` chooses
    reach: steps from the byte for max |w| / 6 to the other bytes that `fit` tries
    """

    name: str
    param: str
    block: int
    multiple: int
    top: int
    reach: tuple[int, ...]
    bits: int = 4

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """One byte per block: uint8 [rows, cols / block]."""
        return {self.param: ((rows, cols // self.block), UINT8)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`. Compares the scale that fits the largest weight with its neighbours."""
        return fitted(self, w, importance)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        return Search(self.name, reach=self.reach, scales=tuple(self._table()[: self.top + 1].tolist()))

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, self.block, 1, self._choose)

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        xp = array_namespace(scale)
        table = xp.asarray(self._table()[: self.top + 1], device=device(scale))
        wanted = xp.reshape(scale, (-1,))
        above = xp.clip(xp.searchsorted(table, wanted), 1, self.top)
        below = above - 1
        nearer = wanted - xp.take(table, below) < xp.take(table, above) - wanted
        byte = xp.reshape(xp.astype(xp.where(nearer, below, above), xp.uint8), scale.shape)
        return StoredScales({self.param: byte}, self._scales(byte), None)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        byte = params[self.param]
        return Grid(E2M1_LEVELS.entries(byte), self._scales(byte), None, self.block)

    def _table(self) -> np.ndarray:
        return _half_e8m0() if self.param == "e" else _half_ue4m3()

    def _scales(self, byte: Array) -> Array:
        xp = array_namespace(byte)
        table = xp.asarray(self._table(), device=device(byte))
        index = xp.reshape(xp.astype(byte, xp.int64), (-1,))
        return xp.reshape(xp.take(table, index), byte.shape)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        xp = array_namespace(x)
        table = xp.asarray(self._table()[: self.top + 1], device=device(x))
        start = xp.searchsorted(table, xp.reshape(xp.max(xp.abs(x), axis=0) / 12.0, (-1,)))
        start = xp.reshape(start, tuple(x.shape[1:]))
        best = xp.clip(start, 0, self.top)
        lost = grid_error(x, weight, self._scales(best), None, E2M1_LEVELS)
        for step in self.reach:
            byte = xp.clip(start + step, 0, self.top)
            new = grid_error(x, weight, self._scales(byte), None, E2M1_LEVELS)
            better = new < lost
            best, lost = xp.where(better, byte, best), xp.where(better, new, lost)
        return {self.param: xp.astype(best, xp.uint8)}


MXFP4 = MicroScaled("mxfp4", "e", 32, 32, 254, (-1, 1))
NVFP4 = MicroScaled("nvfp4", "scales", 16, 64, 0x7E, (-1, 1, -2, 2, -3, 3, -4))

"""Formats with a fixed table of values and one scale per block: NF4 and FP4 of bitsandbytes, with their tables.

NF4 (Dettmers et al. 2023, QLoRA, appendix E): quantiles of a normal distribution, zero and both ends included.
FP4 (bitsandbytes): sign, two exponent bits, one mantissa bit, divided by its largest value 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.affine import extents
from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.precision import FLOAT32, PRECISIONS, UINT8, constant, stored, to_float32
from bitsmith.quant.formats.search import search, usable
from bitsmith.quant.grid import Array, Grid

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4_PATTERNS = {0: 0.0, 1: 0.0625, 6: 2.0, 7: 3.0, 4: 4.0, 5: 6.0, 2: 8.0, 3: 12.0}  # sign bit: 8


@dataclass(frozen=True)
class Codebook:
    """value = scale * table[code]; scale is absmax / largest table entry.

    bits: bits of the stored pattern
    table: ascending, finite, with only one zero; fewer than 2**bits entries if some patterns are unused
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

    def _candidates(self, w: Array) -> Iterator[Params]:
        low, high = extents(w, self.block)
        for step in range(21):
            ratio = 1.0 - 0.025 * step
            yield self.from_extent(low * ratio, high * ratio)


@dataclass(frozen=True)
class DoublyQuantized:
    """A codebook whose scales are quantized too (QLoRA, section 3, "Double Quantization").

    The scales of up to 256 neighbouring blocks of a row, minus their mean, get 8-bit codes on the dynamic map
    (Dettmers et al. 2021, 8-bit optimizers), which represents values near the mean and outliers well. In bitsandbytes
    super-blocks cross rows and there is one mean per tensor; here rows are independent.

    Parameters: "scale_code" [rows, blocks] uint8; "scale_range" and "scale_mean" [rows, super-blocks] float32.
    """

    plain: Codebook
    superblock: int = 256

    @property
    def name(self) -> str:
        """The plain format's name with "-dq"."""
        return f"{self.plain.name}-dq"

    @property
    def bits(self) -> int:
        """See `Format`."""
        return self.plain.bits

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.plain.multiple

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """scale_code: uint8 [rows, blocks]; scale_range, scale_mean: float32 [rows, super-blocks].

        Raises UnsupportedError if blocks do not divide the row.
        """
        blocks = check_row(self.name, cols, self.multiple) // self.plain.block
        supers = (rows, -(-blocks // self.superblock))
        return {
            "scale_code": ((rows, blocks), UINT8),
            "scale_range": (supers, FLOAT32),
            "scale_mean": (supers, FLOAT32),
        }

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """The scales of the plain format, searched with importance, then quantized."""
        check_row(self.name, w.shape[1], self.multiple)
        scale = self.plain.fit(w, importance)["scale"]
        xp = array_namespace(scale)
        codes, ranges, means = [], [], []
        for part in self._supers(scale):
            mean = xp.mean(xp.astype(part, xp.float64), axis=1, keepdims=True)
            mean = xp.astype(mean, xp.float32)
            spread = xp.max(xp.abs(part - mean), axis=1, keepdims=True)
            codes.append(self._scale_grid(spread, mean).nearest(part))
            ranges.append(spread)
            means.append(mean)
        return {
            "scale_code": xp.concat(codes, axis=1),
            "scale_range": xp.concat(ranges, axis=1),
            "scale_mean": xp.concat(means, axis=1),
        }

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; range and mean of the super-block do not change."""
        xp = array_namespace(scale)
        codes, values = [], []
        for at, block in enumerate(range(blocks.start, blocks.stop)):
            i = block // self.superblock
            grid = self._scale_grid(params["scale_range"][:, i : i + 1], params["scale_mean"][:, i : i + 1])
            codes.append(grid.nearest(scale[:, at : at + 1]))
            values.append(grid.values(codes[-1]))
        return StoredScales(
            {"scale_code": xp.concat(codes, axis=1)}, xp.clip(xp.concat(values, axis=1), 0.0, None), None
        )

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        xp = array_namespace(params["scale_mean"])
        parts = [
            self._scale_grid(params["scale_range"][:, i : i + 1], params["scale_mean"][:, i : i + 1]).values(codes)
            for i, codes in enumerate(self._supers(params["scale_code"]))
        ]
        scale = xp.clip(xp.concat(parts, axis=1), 0.0, None)  # a scale near zero may come out below it
        return self.plain.grid({"scale": scale})

    def _supers(self, x: Array) -> list[Array]:
        """The columns of each super-block; the last of a row may be shorter."""
        return [x[:, start : start + self.superblock] for start in range(0, x.shape[1], self.superblock)]

    def _scale_grid(self, spread: Array, mean: Array) -> Grid:
        return Grid(constant(_dynamic_map(), mean), spread, mean, 0)


def nf4(block: int = 64) -> Codebook:
    """NormalFloat4; the stored pattern is the code itself, as in bitsandbytes."""
    return Codebook("nf4", 4, _NF4, tuple(range(16)), (), block)


def fp4(block: int = 64) -> Codebook:
    """bitsandbytes' FP4: 15 distinct values; pattern 8 is minus zero, which is never written and read as zero."""
    positive = sorted((value / 12.0, pattern) for pattern, value in _FP4_PATTERNS.items() if value)
    entries = [(-value, pattern | 8) for value, pattern in reversed(positive)] + [(0.0, 0)] + positive
    table = tuple(float(np.float32(value)) for value, _ in entries)
    return Codebook("fp4", 4, table, tuple(pattern for _, pattern in entries), ((8, 7),), block)


@lru_cache
def _as_array(table: tuple[float, ...]) -> np.ndarray:
    array = np.array(table, np.float32)
    array.flags.writeable = False
    return array


@lru_cache
def _dynamic_map() -> np.ndarray:
    """Dynamic tree quantization, signed, 8 bits: 256 ascending values in (-1, 1], float32.

    For each decade 10^(i - 6), i = 0..6: the middles of 2^i equal intervals of 0.1..1, with both signs. Also zero and
    one.
    """
    positive = [
        10.0 ** (i - 6) * middle
        for i in range(7)
        for middle in 0.1 + 0.9 * (np.arange(2**i, dtype=np.float64) + 0.5) / 2**i
    ]
    table = np.sort(np.array([0.0, 1.0, *positive, *(-x for x in positive)])).astype(np.float32)
    table.flags.writeable = False
    return table

"""One-level formats of ggml: blocks of 32 weights with a float16 scale, and a float16 minimum in Q4_1 and Q5_1.

Layouts, value formulas and the reference rounding: ggml-quants.c (`quantize_row_*_ref`, `dequantize_row_*`) of
llama.cpp. Without importance the codes equal the reference bit for bit; with importance the scales are searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Params, StoredScales
from bitsmith.quant.formats.core_fit import Search, fitted
from bitsmith.quant.formats.precision import FLOAT16, to_float32
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.scale_search import (
    Levels,
    column_weights,
    f16,
    fit_chunks,
    grid_error,
    quantized,
    rows_of_chunk,
    search_affine,
    search_scale,
    tree_sum,
)
from bitsmith.quant.scale_search import inverse as bounded_inverse

BLOCK = 32
_REFITS = 2  # times that d and m are refitted in turn


def _blocks(w: Array) -> Array:
    """[rows, cols] -> [rows, cols / 32, 32]."""
    return array_namespace(w).reshape(w, (w.shape[0], -1, BLOCK))


def _pick(blocks: Array, index: Array) -> Array:
    """The weight at `index` of each block: [rows, n, 32], [rows, n] -> [rows, n]."""
    xp = array_namespace(blocks)
    return xp.take_along_axis(blocks, index[:, :, None], axis=2)[:, :, 0]


def _reference_inverse(d: Array) -> Array:
    """1 / d as in ggml: 0 for 0, infinite for the smallest denormals."""
    xp = array_namespace(d)
    return xp.where(d != 0, 1.0 / xp.where(d != 0, d, xp.ones_like(d)), xp.zeros_like(d))


def _codes(t: Array, top: int) -> Array:
    """Truncate targets >= 0 to codes. Values that are not finite become 0, as in x86-64's conversion to int8."""
    xp = array_namespace(t)
    t = xp.clip(xp.where(xp.isfinite(t), t, xp.zeros_like(t)), 0.0, float(top))
    return xp.reshape(xp.astype(t, xp.uint8), (t.shape[0], -1))


def _by_chunks(w: Array, encode: Callable[[Array], tuple[Array, Params]]) -> tuple[Array, Params]:
    """Run `encode` on chunks of rows of [rows, cols] and join its codes and parameters."""
    xp = array_namespace(w)
    rows, cols = w.shape
    step = rows_of_chunk(cols)
    with np.errstate(over="ignore", invalid="ignore"):
        found = [encode(_blocks(w[start : start + step, :])) for start in range(0, max(1, rows), step)]
    params = {name: xp.concat([part[name] for _, part in found], axis=0) for name in found[0][1]}
    return xp.concat([codes for codes, _ in found], axis=0), params


def project_d(scale: Array) -> StoredScales:
    """`Refittable.project` of formats whose only parameter is d, one float16 per block."""
    xp = array_namespace(scale)
    kept = f16(scale)
    return StoredScales({"d": xp.astype(kept, xp.float16)}, kept, None)


@dataclass(frozen=True)
class Q8Blocks:
    """Q8_0: value = d * (code - 128). Chosen codes are 1..255; code 0 is only read."""

    name: str = "q8_0"
    bits: int = 8
    multiple: int = BLOCK

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d: float16 [rows, cols / 32]."""
        return {"d": ((rows, cols // BLOCK), FLOAT16)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """d = max |w| / 127, as in ggml: at eight bits importance gains nothing."""
        return fitted(self, w, importance)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        return Search(self.name)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        column_weights(importance)  # only checks the importance, which is not used
        xp = array_namespace(w)
        return {"d": xp.astype(f16(xp.max(xp.abs(_blocks(w)), axis=2) / 127.0), xp.float16)}

    def reference(self, w: Array) -> tuple[Array, Params]:
        """As `quantize_row_q8_0_ref`: codes from the float32 scale, half away from zero."""
        return _by_chunks(w, self._encode)

    def _encode(self, blocks: Array) -> tuple[Array, Params]:
        xp = array_namespace(blocks)
        d = xp.max(xp.abs(blocks), axis=2) / 127.0
        t = blocks * _reference_inverse(d)[:, :, None]
        t = xp.where(xp.isfinite(t), t, xp.zeros_like(t))
        whole = xp.trunc(t)
        t = whole + xp.where(xp.abs(t - whole) >= 0.5, xp.sign(t), xp.zeros_like(t))
        return _codes(t + 128.0, 255), {"d": xp.astype(d, xp.float16)}

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        return project_d(scale)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        d = to_float32(params["d"])
        return Grid(Levels(-128, 127).entries(d), d, None, BLOCK)


@dataclass(frozen=True)
class SymmetricBlocks:
    """Q4_0, Q5_0: value = d * (code - 2^(bits - 1)); d may be negative."""

    name: str
    bits: int
    targets: tuple[float, ...]
    multiple: int = BLOCK

    @property
    def _levels(self) -> Levels:
        half = 1 << (self.bits - 1)
        return Levels(-half, half - 1)

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d: float16 [rows, cols / 32]."""
        return {"d": ((rows, cols // BLOCK), FLOAT16)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`."""
        return fitted(self, w, importance)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        return Search(self.name, self.targets)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, BLOCK, 1, self._choose)

    def reference(self, w: Array) -> tuple[Array, Params]:
        """As `quantize_row_q4_0_ref`, `quantize_row_q5_0_ref`: the weight of largest magnitude gets code 0."""
        return _by_chunks(w, self._encode)

    def _encode(self, blocks: Array) -> tuple[Array, Params]:
        xp = array_namespace(blocks)
        half = 1 << (self.bits - 1)
        extreme = _pick(blocks, xp.argmax(xp.abs(blocks), axis=2))
        extreme = xp.where(extreme != 0, extreme, xp.zeros_like(extreme))  # -0 is never the largest
        d = extreme / -float(half)
        t = blocks * _reference_inverse(d)[:, :, None] + (half + 0.5)
        return _codes(t, 2 * half - 1), {"d": xp.astype(d, xp.float16)}

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        return project_d(scale)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        d = to_float32(params["d"])
        return Grid(self._levels.entries(d), d, None, BLOCK)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        return {"d": choose_scale(x, weight, self._levels, self.targets)}


def choose_scale(x: Array, weight: Array | None, levels: Levels, targets: tuple[float, ...]) -> Array:
    """The float16 scale of each block, refitted once after rounding: x [block, ...] -> [...] float16."""
    xp = array_namespace(x)
    d = f16(search_scale(x, weight, levels, targets))
    level = quantized(x, d, None, levels)
    counted = level if weight is None else level * weight
    refit = f16(tree_sum(counted * x) * bounded_inverse(tree_sum(counted * level)))
    better = grid_error(x, weight, refit, None, levels) < grid_error(x, weight, d, None, levels)
    return xp.astype(xp.where(better, refit, d), xp.float16)


@dataclass(frozen=True)
class AffineBlocks:
    """Q4_1, Q5_1: value = d * code + m."""

    name: str
    bits: int
    targets: tuple[float, ...]
    multiple: int = BLOCK

    @property
    def _levels(self) -> Levels:
        return Levels(0, (1 << self.bits) - 1)

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d, m: float16 [rows, cols / 32]."""
        shape = (rows, cols // BLOCK)
        return {"d": (shape, FLOAT16), "m": (shape, FLOAT16)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`."""
        return fitted(self, w, importance)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        return Search(self.name, self.targets, rounds=_REFITS)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, BLOCK, 1, self._choose)

    def reference(self, w: Array) -> tuple[Array, Params]:
        """As `quantize_row_q4_1_ref`, `quantize_row_q5_1_ref`: the smallest weight gets code 0, the largest the top."""
        return _by_chunks(w, self._encode)

    def _encode(self, blocks: Array) -> tuple[Array, Params]:
        xp = array_namespace(blocks)
        top = (1 << self.bits) - 1
        # of equal weights take the first, because 0 and -0 are stored differently
        low, high = _pick(blocks, xp.argmin(blocks, axis=2)), _pick(blocks, xp.argmax(blocks, axis=2))
        d = (high - low) / float(top)
        t = (blocks - low[:, :, None]) * _reference_inverse(d)[:, :, None] + 0.5
        return _codes(t, top), {"d": xp.astype(d, xp.float16), "m": xp.astype(low, xp.float16)}

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        assert offset is not None
        xp = array_namespace(scale)
        d, m = f16(scale), f16(offset)
        return StoredScales({"d": xp.astype(d, xp.float16), "m": xp.astype(m, xp.float16)}, d, m)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        d, m = to_float32(params["d"]), to_float32(params["m"])
        return Grid(self._levels.entries(d), d, m, BLOCK)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        """Take the pair from the search, round both, then refit them in turn. The pair with the least error stays."""
        xp = array_namespace(x)
        scale, low = search_affine(x, weight, self._levels.high, self.targets)
        d, m = f16(scale), f16(low)
        lost = grid_error(x, weight, d, m, self._levels)
        total = float(BLOCK) if weight is None else tree_sum(weight)
        for _ in range(_REFITS):
            level = quantized(x, d, m, self._levels)
            counted = level if weight is None else level * weight
            rest = x - level * d
            new_m = f16(tree_sum(rest if weight is None else rest * weight) / total)
            new_d = f16(tree_sum(counted * (x - new_m)) * bounded_inverse(tree_sum(counted * level)))
            new_lost = grid_error(x, weight, new_d, new_m, self._levels)
            better = new_lost < lost
            d, m = xp.where(better, new_d, d), xp.where(better, new_m, m)
            lost = xp.where(better, new_lost, lost)
        return {"d": xp.astype(d, xp.float16), "m": xp.astype(m, xp.float16)}

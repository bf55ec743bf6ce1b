"""Two-level formats of ggml: super-blocks of 256 weights whose block scales are small integers times a float16.

Layouts and value formulas: ggml-quants.c (`dequantize_row_q2_K` ... `dequantize_row_q6_K`, `dequantize_row_iq4_xs`)
of llama.cpp. The searches are our own: scales are refitted each time after they are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Params, StoredScales
from bitsmith.quant.formats.core_fit import Search, fitted
from bitsmith.quant.formats.precision import FLOAT16, UINT8, to_float32
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.scale_search import (
    Levels,
    f16,
    fit_chunks,
    grid_error,
    inverse,
    quantized,
    search_affine,
    search_scale,
    tree_sum,
)

SUPER = 256  # weights in a super-block


def _spread(d: Array, parts: int) -> Array:
    """One value per super-block [rows, n] -> one per block [rows, n * parts]."""
    xp = array_namespace(d)
    return xp.repeat(to_float32(d), parts, axis=1)


@dataclass(frozen=True)
class AffineK:
    """value = d * scales * code - dmin * mins: Q2_K, Q4_K, Q5_K.

    block: number of weights that share a scale and a min
    top: largest integer of scales and mins (15 or 63)
    targets: levels tried for the largest weight of a block, see `search_affine`
    shares: d is the largest block scale divided by `top` times one of these; the same for dmin and the largest min
    reach: number of steps around the rounded scale and min that the refinement tries
    rounds: number of refinements
    """

    name: str
    bits: int
    block: int
    top: int
    targets: tuple[float, ...]
    shares: tuple[float, ...] = (1.0,)
    reach: int = 1
    rounds: int = 2
    multiple: int = SUPER

    @property
    def integer_ranges(self) -> dict[str, tuple[int, int]]:
        """Ranges of the blocks' scales and mins."""
        return {"scales": (0, self.top), "mins": (0, self.top)}

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d, dmin: float16 [rows, cols / 256]; scales, mins: uint8 [rows, cols / block]."""
        supers, blocks = (rows, cols // SUPER), (rows, cols // self.block)
        return {"d": (supers, FLOAT16), "dmin": (supers, FLOAT16), "scales": (blocks, UINT8), "mins": (blocks, UINT8)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`. Searches block scales and mins, then improves their integers by coordinate descent."""
        return fitted(self, w, importance)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, self.block, SUPER // self.block, self._choose)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        divisors = tuple(self.top * share for share in self.shares)
        return Search(self.name, self.targets, divisors, (self.reach,), self.rounds)

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; d and dmin do not change."""
        assert offset is not None
        xp = array_namespace(scale)
        d, dmin = (_spread(params[name], SUPER // self.block)[:, blocks] for name in ("d", "dmin"))
        scales = xp.clip(xp.round(scale * inverse(d)), 0, self.top)
        mins = xp.clip(xp.round(-offset * inverse(dmin)), 0, self.top)
        kept = {"scales": xp.astype(scales, xp.uint8), "mins": xp.astype(mins, xp.uint8)}
        return StoredScales(kept, d * scales, -(dmin * mins))

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        parts = SUPER // self.block
        scale = _spread(params["d"], parts) * to_float32(params["scales"])
        offset = -(_spread(params["dmin"], parts) * to_float32(params["mins"]))
        return Grid(self._levels.entries(params["d"]), scale, offset, self.block)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        xp = array_namespace(x)
        scale, offset = search_affine(x, weight, self._levels.high, self.targets, ceiling=0.0)
        best = reduce(_AffineState.better, self._starts(x, weight, scale, -offset))
        for _ in range(self.rounds):
            best = self._refit(x, weight, self._descend(x, weight, best))
        return {
            "d": xp.astype(best.d, xp.float16),
            "dmin": xp.astype(best.dmin, xp.float16),
            "scales": xp.astype(best.scales, xp.uint8),
            "mins": xp.astype(best.mins, xp.uint8),
        }

    @property
    def _levels(self) -> Levels:
        return Levels(0, (1 << self.bits) - 1)

    def _starts(self, x: Array, weight: Array | None, scale: Array, low: Array) -> Iterator[_AffineState]:
        """Candidate d and dmin, with the integers nearest to the wanted scales and mins."""
        xp = array_namespace(x)
        for share in self.shares:
            d = f16(xp.max(scale, axis=0) / (self.top * share))
            for min_share in self.shares:
                dmin = f16(xp.max(low, axis=0) / (self.top * min_share))
                scales = xp.clip(xp.round(scale * inverse(d)), 0, self.top)
                mins = xp.clip(xp.round(low * inverse(dmin)), 0, self.top)
                lost = grid_error(x, weight, d * scales, -(dmin * mins), self._levels)
                yield _AffineState(d, dmin, scales, mins, lost)

    def _descend(self, x: Array, weight: Array | None, state: _AffineState) -> _AffineState:
        """For each block, the best pair of integers in reach, with d and dmin fixed.

        The tried pairs lie along the valley of the error: a larger scale goes with a larger min, so that the value of
        the mean code does not change.
        """
        xp = array_namespace(x)
        level = quantized(x, state.d * state.scales, -(state.dmin * state.mins), self._levels)
        middle = tree_sum(level if weight is None else level * weight)
        middle = middle / (float(self.block) if weight is None else tree_sum(weight))
        slope = middle * state.d * inverse(state.dmin)  # mins per scale
        scales, mins, lost = state.scales, state.mins, state.lost
        for step in range(-self.reach, self.reach + 1):
            new_scales = xp.clip(state.scales + step, 0, self.top)
            valley = state.mins + xp.round((new_scales - state.scales) * slope)
            for aside in (-1, 0, 1):
                if step == 0 and aside == 0:
                    continue
                new_mins = xp.clip(valley + aside, 0, self.top)
                new_lost = grid_error(x, weight, state.d * new_scales, -(state.dmin * new_mins), self._levels)
                better = new_lost < lost
                scales, mins = xp.where(better, new_scales, scales), xp.where(better, new_mins, mins)
                lost = xp.where(better, new_lost, lost)
        return _AffineState(state.d, state.dmin, scales, mins, lost)

    def _refit(self, x: Array, weight: Array | None, state: _AffineState) -> _AffineState:
        """d and dmin by least squares for the present codes, rounded to float16. They are kept if the error falls."""
        xp = array_namespace(x)
        scale, offset = state.d * state.scales, -(state.dmin * state.mins)
        level = quantized(x, scale, offset, self._levels)
        weighted = x if weight is None else x * weight
        counted = level if weight is None else level * weight
        total = float(self.block) if weight is None else tree_sum(weight)
        s, m = state.scales, state.mins
        ss = tree_sum(s * s * tree_sum(counted * level))
        sm = tree_sum(s * m * tree_sum(counted))
        mm = tree_sum(m * m * total)
        sx = tree_sum(s * tree_sum(weighted * level))
        mx = tree_sum(m * tree_sum(weighted))
        determinant = inverse(ss * mm - sm * sm)
        d = (mm * sx - sm * mx) * determinant
        dmin = (sm * sx - ss * mx) * determinant
        alone = (dmin < 0.0) | (determinant == 0.0)
        d = f16(xp.where(alone, sx * inverse(ss), d))
        dmin = f16(xp.where(alone, xp.zeros_like(dmin), dmin))
        lost = grid_error(x, weight, d * s, -(dmin * m), self._levels)
        return state.better(_AffineState(d, dmin, s, m, lost))


@dataclass(frozen=True)
class _AffineState:
    """d, dmin [n] (float16 values in float32); scales, mins [parts, n] (integers in float32); lost [parts, n]."""

    d: Array
    dmin: Array
    scales: Array
    mins: Array
    lost: Array

    def better(self, other: _AffineState) -> _AffineState:
        """For each super-block the state with the smaller error; self if both are equal."""
        xp = array_namespace(self.d)
        take = tree_sum(other.lost) < tree_sum(self.lost)
        return _AffineState(
            xp.where(take, other.d, self.d),
            xp.where(take, other.dmin, self.dmin),
            xp.where(take, other.scales, self.scales),
            xp.where(take, other.mins, self.mins),
            xp.where(take, other.lost, self.lost),
        )


@dataclass(frozen=True)
class SymmetricK:
    """value = d * scales * level, level = table[code]: Q3_K, Q6_K, IQ4_XS. Scales may be negative.

    block: number of weights that share a scale
    low, high: range of the integer scales
    levels: the table
    targets: see `search_scale`
    shares, reach, rounds: see `AffineK`
    """

    name: str
    bits: int
    block: int
    low: int
    high: int
    levels: Levels
    targets: tuple[float, ...]
    shares: tuple[float, ...] = (1.0,)
    reach: int = 1
    rounds: int = 2
    multiple: int = SUPER

    @property
    def integer_ranges(self) -> dict[str, tuple[int, int]]:
        """Range of the blocks' scales."""
        return {"scales": (self.low, self.high)}

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d: float16 [rows, cols / 256]; scales: int8 [rows, cols / block]."""
        return {"d": ((rows, cols // SUPER), FLOAT16), "scales": ((rows, cols // self.block), np.dtype(np.int8))}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`. Searches block scales, then improves their integers by coordinate descent."""
        return fitted(self, w, importance)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, self.block, SUPER // self.block, self._choose)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        divisors = tuple(self.low * share for share in self.shares)
        return Search(self.name, self.targets, divisors, (self.reach,), self.rounds)

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; d does not change."""
        xp = array_namespace(scale)
        d = _spread(params["d"], SUPER // self.block)[:, blocks]
        scales = xp.clip(xp.round(scale * inverse(d)), self.low, self.high)
        return StoredScales({"scales": xp.astype(scales, xp.int8)}, d * scales, None)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        scale = _spread(params["d"], SUPER // self.block) * to_float32(params["scales"])
        return Grid(self.levels.entries(params["d"]), scale, None, self.block)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        xp = array_namespace(x)
        scale = search_scale(x, weight, self.levels, self.targets)
        best = reduce(_SymmetricState.better, self._starts(x, weight, scale))
        for _ in range(self.rounds):
            best = self._refit(x, weight, self._descend(x, weight, best))
        return {"d": xp.astype(best.d, xp.float16), "scales": xp.astype(best.scales, xp.int8)}

    def _starts(self, x: Array, weight: Array | None, scale: Array) -> Iterator[_SymmetricState]:
        """Candidate d, with the integers nearest to the wanted scales. The largest scale gets the lowest integer."""
        xp = array_namespace(x)
        high, low = xp.max(scale, axis=0), xp.min(scale, axis=0)
        extreme = xp.where(high >= -low, high, low)
        for share in self.shares:
            d = f16(extreme / (self.low * share))
            scales = xp.clip(xp.round(scale * inverse(d)), self.low, self.high)
            yield _SymmetricState(d, scales, grid_error(x, weight, d * scales, None, self.levels))

    def _descend(self, x: Array, weight: Array | None, state: _SymmetricState) -> _SymmetricState:
        """For each block, the best integer scale in reach, with d fixed."""
        xp = array_namespace(x)
        scales, lost = state.scales, state.lost
        for step in range(-self.reach, self.reach + 1):
            if step:
                new_scales = xp.clip(state.scales + step, self.low, self.high)
                new_lost = grid_error(x, weight, state.d * new_scales, None, self.levels)
                better = new_lost < lost
                scales, lost = xp.where(better, new_scales, scales), xp.where(better, new_lost, lost)
        return _SymmetricState(state.d, scales, lost)

    def _refit(self, x: Array, weight: Array | None, state: _SymmetricState) -> _SymmetricState:
        """d by least squares for the present codes, rounded to float16. It is kept if the error falls."""
        level = quantized(x, state.d * state.scales, None, self.levels)
        counted = level if weight is None else level * weight
        s = state.scales
        d = f16(tree_sum(s * tree_sum(counted * x)) * inverse(tree_sum(s * s * tree_sum(counted * level))))
        return state.better(_SymmetricState(d, s, grid_error(x, weight, d * s, None, self.levels)))


@dataclass(frozen=True)
class _SymmetricState:
    """d [n] (a float16 value in float32); scales [parts, n] (integers in float32); lost [parts, n]."""

    d: Array
    scales: Array
    lost: Array

    def better(self, other: _SymmetricState) -> _SymmetricState:
        """For each super-block the state with the smaller error; self if both are equal."""
        xp = array_namespace(self.d)
        take = tree_sum(other.lost) < tree_sum(self.lost)
        return _SymmetricState(
            xp.where(take, other.d, self.d),
            xp.where(take, other.scales, self.scales),
            xp.where(take, other.lost, self.lost),
        )

"""Scale search: finds the scale and offset of many blocks at once that minimise the squared error.

Blocks are columns of an array x [block, ...], so every step is one pass over a whole chunk. Sums have a fixed order
(`tree_sum`), and all other operations are elementwise and exactly rounded. The result of a block therefore depends on
that block alone, not on its neighbours, the size of the slab or the number of threads.

Everything works on numpy arrays and torch tensors. Some numpy arrays are reused in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device

from bitsmith.errors import TensorError
from bitsmith.quant.grid import Array

CHUNK = 1 << 15  # weights processed at once: each temporary is 128 KiB and stays in the second-level cache
F16_MAX = 65504.0
LARGEST = 1e15  # the search clips weights to this, far beyond any scale, so that squares stay finite
WEIGHT_FLOOR = 1e-5  # share of the mean importance; columns without input in calibration still count a little


def tree_sum(a: Array) -> Array:
    """Sum over the first axis, whose length is a power of two, by halving: [n, ...] -> [...] float32."""
    half = a.shape[0]
    while half > 1:
        half //= 2
        a = a[:half] + a[half:]
    return a[0]


def column_weights(importance: Array | None) -> Array | None:
    """Weight of each column's squared error: [cols] float32 with mean 1; None for plain squared error.

    An importance of all zeros counts as None. Raises TensorError if it is negative, NaN or infinite.
    Importance becomes a weight only here. The weights do not depend on the values being quantized (llama.cpp
    multiplies by a term in |w|), so the minimised error is the reported error.
    """
    if importance is None:
        return None
    xp = array_namespace(importance)
    mean = float(xp.mean(xp.astype(importance, xp.float64)))
    if not (math.isfinite(mean) and bool(xp.all(importance >= 0.0))):
        raise TensorError(
            "the importance of a tensor's columns must be finite and not negative, but holds NaN, infinite or negative "
            "values; calibrate again, or leave it out"
        )
    if mean == 0.0:
        return None
    return xp.astype(xp.astype(importance, xp.float64) / mean + WEIGHT_FLOOR, xp.float32)


def rows_of_chunk(cols: int) -> int:
    """Number of rows of `cols` weights that are processed at once."""
    return max(1, CHUNK // max(1, cols))


def chunks(w: Array, importance: Array | None, block: int, parts: int) -> Iterator[tuple[slice, Array, Array | None]]:
    """Cut `w` float32 [rows, cols] into chunks of whole rows, with blocks as columns.

    Yields (rows, x, weight). x is float32 [block, parts, n], where a group is `parts` neighbouring blocks and n counts
    the groups of these rows, row by row. weight has the same shape, or is None.
    """
    xp = array_namespace(w)
    rows, cols = w.shape
    group = block * parts
    step = rows_of_chunk(cols)
    weights = column_weights(importance)
    tiled = None
    if weights is not None:
        tiled = _as_columns(xp.tile(weights, (min(step, rows),)), block, parts)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        part = None if tiled is None else tiled[:, :, : (stop - start) * (cols // group)]
        x = xp.clip(w[start:stop, :], -LARGEST, LARGEST) + 0.0  # removes -0, so that sums of zeros have one sign
        yield slice(start, stop), _as_columns(x, block, parts), part


def _as_columns(w: Array, block: int, parts: int) -> Array:
    xp = array_namespace(w)
    columns = xp.permute_dims(xp.reshape(w, (-1, parts, block)), (2, 1, 0))
    return np.ascontiguousarray(columns) if isinstance(columns, np.ndarray) else columns.contiguous()


def f16(a: Array) -> Array:
    """Round to float16 and back, saturating: float32 -> float32."""
    xp = array_namespace(a)
    return xp.astype(xp.astype(xp.clip(a, -F16_MAX, F16_MAX), xp.float16), xp.float32)


def inverse(a: Array) -> Array:
    """1 / a, but 0 if a is 0 or so small that 1 / a overflows."""
    xp = array_namespace(a)
    alive = xp.abs(a) > 1e-37
    return xp.where(alive, 1.0 / xp.where(alive, a, xp.ones_like(a)), xp.zeros_like(a))


@dataclass(frozen=True)
class Levels:
    """The values of a table, before the scale: integers low..high, or an ascending `table` of integers.

    `round_(t)` replaces targets by the nearest level, in place if possible.
    """

    low: int
    high: int
    table: tuple[int, ...] | None = None

    def round_(self, t: Array) -> Array:
        """float32 targets, any shape -> float32 nearest levels of the same shape."""
        if self.table is None:
            if isinstance(t, np.ndarray):
                np.rint(t, out=t)
                return np.clip(t, self.low, self.high, out=t)
            return t.round_().clamp_(self.low, self.high)
        xp = array_namespace(t)
        lookup = xp.asarray(self._lookup(), device=device(t))
        # midpoints of integers are multiples of 1/2, so ceil(2 t) identifies the interval exactly
        t = xp.clip(xp.ceil(t * 2.0), 2.0 * self.low, 2.0 * self.high) - 2.0 * self.low
        index = xp.astype(t, xp.int32)
        return xp.reshape(xp.take(lookup, xp.reshape(index, (-1,))), t.shape)

    def entries(self, like: Array) -> Array:
        """The table as float32 [levels], in the namespace and on the device of `like`."""
        xp = array_namespace(like)
        values = range(self.low, self.high + 1) if self.table is None else self.table
        return xp.asarray(list(values), dtype=xp.float32, device=device(like))

    def _lookup(self) -> np.ndarray:
        """The level for each ceil(2 t) from 2 low to 2 high, float32."""
        table = np.asarray(self.table, np.float32)
        middles = table[1:] + table[:-1]
        steps = np.arange(2 * self.low, 2 * self.high + 1, dtype=np.float32)
        return table[np.searchsorted(middles, steps)]


def error(x: Array, weight: Array | None, rounded: Array) -> Array:
    """(Weighted) squared error of each block: x, rounded [block, ...] -> [...] float32. Overwrites `rounded`."""
    rounded -= x
    rounded *= rounded
    if weight is not None:
        rounded *= weight
    return tree_sum(rounded)


def quantized(x: Array, scale: Array, offset: Array | None, levels: Levels) -> Array:
    """Levels of x [block, ...] after rounding to levels * scale + offset: float32 [block, ...]."""
    t = x * inverse(scale) if offset is None else (x - offset) * inverse(scale)
    return levels.round_(t)


def grid_error(x: Array, weight: Array | None, scale: Array, offset: Array | None, levels: Levels) -> Array:
    """Squared error [...] of rounding x [block, ...] to the nearest level, with scale and offset [...]."""
    t = quantized(x, scale, offset, levels)
    t *= scale
    if offset is not None:
        t += offset
    return error(x, weight, t)


def search_scale(x: Array, weight: Array | None, levels: Levels, targets: tuple[float, ...]) -> Array:
    """The scale of each block, x [block, ...] ~ level * scale: float32 [...], of either sign.

    Each entry of `targets` is tried as the level of the weight with the largest magnitude (a negative entry gives the
    scale the opposite sign). The scale is then the least-squares scale for the chosen levels. Two rounds of rounding
    and refitting improve the best scale. With a least-squares scale the error falls as (sum w x l)^2 / sum w l^2
    rises, so only these sums are computed.
    """
    xp = array_namespace(x)
    high, low = xp.max(x, axis=0), xp.min(x, axis=0)
    extreme = xp.where(high >= -low, high, low)
    unit = x * inverse(extreme)
    weighted = unit if weight is None else unit * weight
    best = xp.zeros_like(extreme)
    gain = xp.full_like(extreme, -1.0)
    for target in targets:
        scale, score = _least_squares_scale(weighted, weight, levels.round_(unit * target))
        better = score > gain
        best, gain = xp.where(better, scale, best), xp.where(better, score, gain)
    for _ in range(2):
        scale, score = _least_squares_scale(weighted, weight, levels.round_(unit * inverse(best)))
        better = score > gain
        best, gain = xp.where(better, scale, best), xp.where(better, score, gain)
    return best * extreme + 0.0  # no -0


def _least_squares_scale(weighted: Array, weight: Array | None, level: Array) -> tuple[Array, Array]:
    """The best scale for given levels, and how much it lowers the error."""
    cross = tree_sum(weighted * level)
    square = tree_sum(level * level if weight is None else level * level * weight)
    scale = cross * inverse(square)
    return scale, scale * cross


def search_affine(
    x: Array, weight: Array | None, top: int, targets: tuple[float, ...], *, ceiling: float | None = None
) -> tuple[Array, Array]:
    """Scale >= 0 and offset of each block, x [block, ...] ~ level * scale + offset with levels 0..top.

    Each entry of `targets` is tried as the level of the largest weight, with level 0 for the smallest. Scale and
    offset are then the least-squares pair for the chosen levels. Two rounds of rounding and refitting improve the best
    pair.
    ceiling: maximum of the offset (K-quants store offsets that are never positive)
    """
    xp = array_namespace(x)
    levels = Levels(0, top)
    low, high = xp.min(x, axis=0), xp.max(x, axis=0)
    if ceiling is not None:
        low = xp.clip(low, None, ceiling)
    extent = high - low
    unit = (x - low) * inverse(extent)  # 0..1
    limit = None if ceiling is None else (ceiling - low) * inverse(extent)
    pair = _LeastSquaresPair.of(unit, weight, limit)
    scale, offset, gain = pair.solve(levels.round_(unit * float(top)))
    for step in (*targets, None, None):
        t = unit * step if step is not None else (unit - offset) * inverse(scale)
        new_scale, new_offset, score = pair.solve(levels.round_(t))
        better = score > gain
        scale, offset = xp.where(better, new_scale, scale), xp.where(better, new_offset, offset)
        gain = xp.where(better, score, gain)
    return scale * extent + 0.0, offset * extent + low  # removes a scale of -0


@dataclass(frozen=True)
class _LeastSquaresPair:
    """Solves min sum w (u - s l - m)^2 for given levels l. Holds the sums that do not depend on l."""

    unit: Array
    weight: Array | None
    weighted: Array
    total: Array | float
    first: Array
    limit: Array | None

    @classmethod
    def of(cls, unit: Array, weight: Array | None, limit: Array | None) -> _LeastSquaresPair:
        weighted = unit if weight is None else unit * weight
        total = float(unit.shape[0]) if weight is None else tree_sum(weight)
        return cls(unit, weight, weighted, total, tree_sum(weighted), limit)

    def solve(self, level: Array) -> tuple[Array, Array, Array]:
        """Scale, offset, and how much they lower the error, each [...]."""
        xp = array_namespace(level)
        cross = tree_sum(self.weighted * level)
        counted = level if self.weight is None else level * self.weight
        mass = tree_sum(counted)
        square = tree_sum(counted * level)
        determinant = inverse(self.total * square - mass * mass)
        scale = (self.total * cross - self.first * mass) * determinant
        offset = (square * self.first - mass * cross) * determinant
        if self.limit is not None:
            over = (offset > self.limit) | (determinant == 0.0)
            offset = xp.where(over, self.limit, offset)
            scale = xp.where(over, (cross - offset * mass) * inverse(square), scale)
        gain = 2.0 * (scale * cross + offset * self.first) - scale * scale * square
        gain = gain - 2.0 * scale * offset * mass - offset * offset * self.total
        return scale, offset, xp.where(scale > 0.0, gain, xp.full_like(gain, -1.0))


Chosen = Callable[[Array, Array | None], dict[str, Array]]


def fit_chunks(w: Array, importance: Array | None, block: int, parts: int, choose: Chosen) -> dict[str, Array]:
    """Run `choose` over all chunks of `w` [rows, cols] and arrange its results in rows.

    choose(x, weight): x [block, parts, n] -> parameters [parts, n] (per block) or [n] (per group), in stored dtype
    Returns parameters [rows, blocks] and [rows, groups].
    """
    xp = array_namespace(w)
    found: dict[str, list[Array]] = {}
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for rows, x, weight in chunks(w, importance, block, parts):
            for name, values in choose(x, weight).items():
                by_row = values if values.ndim == 1 else xp.permute_dims(values, (1, 0))
                found.setdefault(name, []).append(xp.reshape(by_row, (rows.stop - rows.start, -1)))
    return {name: xp.concat(pieces, axis=0) for name, pieces in found.items()}

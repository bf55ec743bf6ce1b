"""Weights that lie on a format's grid already, as in checkpoints trained for it: finds their codes and scales.

A checkpoint of quantization-aware training (Gemma's for Q4_0, one that was made of MXFP4 or int4 codes) holds code *
scale in 16 bits. A new search of scales would lose what training learned. Here the scales are solved for: a block lies
on the grid if stored scales and codes exist whose values, rounded to the precision of the weights, equal the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format, NeedsExtent, Refittable, Settled, VectorFormat
from bitsmith.quant.formats.precision import FLOAT16, FLOAT32
from bitsmith.quant.grid import Grid
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.number_types import number_type

_PROBED_ROWS = 4  # rows that are tried before a whole tensor is,
_PROBED_WEIGHTS = 1024  # and weights of each
_MOST_LEVELS = 64  # of 8 bits are 256: in 16-bit weights they are hardly ever found, and each try takes time
_MOST_SHIFTED = 16  # where offsets are free (Q4_1, not Q5_1), which takes several tries a level
_MANY_BLOCKS = 1024  # more than share a parameter of a format with two levels of scales
_SLAB = 1 << 18  # weights that are solved for at once
_SHARES = tuple(np.arange(9) / 8)  # the float16 numbers that round to a bfloat16 one
_SIGNIFICANT = {"bfloat16": 8, "float16": 11, "float32": 24}  # binary digits of a number
_SMALLEST = {"bfloat16": -133, "float16": -24, "float32": -149}  # exponent of the smallest number


def has_lattice(format: Format) -> bool:
    """Whether the scales of a format can be solved for: few levels, and parameters of its own for each block of a row.

    Formats of 8 bits are left out: what a new search of their scales loses is little.
    """
    if not isinstance(format, Refittable) or isinstance(format, NeedsExtent | Settled | VectorFormat):
        return False
    many = format.params_layout(1, _MANY_BLOCKS * format.multiple)
    few = 2**format.bits <= (_MOST_LEVELS if len(many) == 1 or isinstance(format, Affine) else _MOST_SHIFTED)
    return few and len({shape for shape, _ in many.values()}) == 1


def probe(w: np.ndarray, format: Format) -> bool:
    """Whether the first blocks of some rows lie on the grid: float32 [rows, cols], see `probed_rows`. It is cheap.

    False where all of them are zero, which lie on every grid.
    """
    if not has_lattice(format) or not w.any() or not np.isfinite(w).all():
        return False
    block = _block(format, w.shape[1])
    width = min(w.shape[1], max(block, _PROBED_WEIGHTS // block * block))
    first = w[:1, :block]  # which ends most probes
    if len(np.unique(first)) > 2**format.bits or not recover(first, format)[1][0]:
        return False
    return all(bool(recover(row[None, :width], format)[1][0]) for row in w)  # the first row ends most probes


def probed_rows(rows: int) -> tuple[int, ...]:
    """Numbers of the rows that `probe` should get, spread over a matrix."""
    return tuple(int(row) for row in np.unique(np.linspace(0, rows - 1, _PROBED_ROWS).astype(np.int64))) if rows else ()


def recover(w: np.ndarray, format: Format) -> tuple[QuantTensor, np.ndarray]:
    """The codes and stored parameters of rows that lie on the grid, and which do: bool [rows].

    w: finite, float32 [rows, cols]; where all are exact in bfloat16 or float16, that is their precision
    What the tensor holds in the other rows has no meaning.
    """
    step = max(1, _SLAB // w.shape[1])
    parts = [_recovered(w[start : start + step], format) for start in range(0, len(w), step)]
    params = {name: np.concatenate([part.params[name] for part, _ in parts]) for name in parts[0][0].params}
    codes = np.concatenate([part.codes for part, _ in parts])
    return QuantTensor(format, codes, params), np.concatenate([found for _, found in parts])


def kept(values: np.ndarray, w: np.ndarray) -> bool:
    """Whether decoded values, rounded to the precision of the weights, equal them; False where all weights are zero."""
    precision = precision_of(w)
    if precision == FLOAT32:
        return bool((values == w).all()) and bool(w.any())
    return bool((values.astype(precision) == w.astype(precision)).all()) and bool(w.any())


def precision_of(w: np.ndarray) -> np.dtype:
    """bfloat16 or float16 where all weights are exact in it, else float32."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        halves = bool((bits & 0xFFFF).any()) and bool((w.astype(np.float16).astype(np.float32) == w).all())
    found: np.dtype = FLOAT16 if halves else FLOAT32
    return found if (bits & 0xFFFF).any() else number_type("bfloat16")


def _block(format: Format, cols: int) -> int:
    """Number of weights that share a scale."""
    return cols // next(iter(format.params_layout(1, cols).values()))[0][1]


@dataclass(frozen=True)
class _Blocks:
    """Blocks to solve for.

    x: float64 [blocks, block]
    low, high: the numbers that round to each weight lie between these
    format, precision: of the grid, and of the weights
    """

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    format: Format
    precision: np.dtype

    @classmethod
    def of(cls, x: np.ndarray, format: Format, precision: np.dtype) -> _Blocks:
        """x: float32 [blocks, block]"""
        wide = x.astype(np.float64)
        mantissa, exponent = np.frexp(wide)
        exponent, smallest = exponent - _SIGNIFICANT[precision.name], _SMALLEST[precision.name]
        half = np.ldexp(0.5, np.maximum(exponent, smallest))  # of a step of the precision
        inner = np.where(np.abs(mantissa) == 0.5, np.ldexp(0.25, np.maximum(exponent, smallest + 1)), half)
        return cls(
            wide, wide - np.where(wide > 0, inner, half), wide + np.where(wide < 0, inner, half), format, precision
        )

    def some(self, at: np.ndarray) -> _Blocks:
        """The blocks where `at` is true."""
        return _Blocks(self.x[at], self.low[at], self.high[at], self.format, self.precision)

    def scale(self, levels: np.ndarray) -> np.ndarray:
        """For each block the middle of all scales that give its weights from these levels: float64 [blocks]."""
        safe = np.where(levels != 0, levels, 1.0)
        ends = np.stack([self.low / safe, self.high / safe])
        least = np.where(levels != 0, ends.min(axis=0), -np.inf).max(axis=1)
        most = np.where(levels != 0, ends.max(axis=0), np.inf).min(axis=1)
        with np.errstate(invalid="ignore"):
            middle: np.ndarray = np.nan_to_num((least + most) / 2, nan=0.0, posinf=0.0, neginf=0.0)
        return middle

    def solved(self, attempt: _Try) -> tuple[QuantTensor, np.ndarray]:
        """Codes and parameters of the nearest scales that can be stored, a row each, and which blocks they give."""
        assert isinstance(self.format, Refittable)
        count = len(self.x)
        scale = attempt.scale.astype(np.float32)[:, None]
        offset = None if attempt.offset is None else attempt.offset.astype(np.float32)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            stored = self.format.project({}, slice(0, 1), scale, offset).params
            grid = self.format.grid(stored)
            assert isinstance(grid, Grid)
            first = np.zeros(count) if grid.offset is None else grid.offset[:, 0].astype(np.float64)
            unit = grid.scale[:, 0].astype(np.float64)
            place = (self.x - first[:, None]) / np.where(unit != 0, unit, np.inf)[:, None]
            codes = _nearest(place, np.asarray(grid.table, np.float64))
            values = grid.values(codes)
            same = (values.astype(self.precision) == self.x.astype(np.float32).astype(self.precision)).all(axis=1)
        return QuantTensor(self.format, codes, stored), same


@dataclass(frozen=True)
class _Search:
    """What is tried for the blocks of a format.

    table: the grid's, float64 [levels]
    shifted: whether blocks have offsets
    targets: what is tried first to last: without offsets the level of the largest weight, those of greatest magnitude
        first; with offsets the number of steps from the least weight to the greatest, zero included if it has a code
    """

    table: np.ndarray
    shifted: bool
    targets: np.ndarray

    @classmethod
    def of(cls, format: Format) -> _Search:
        assert isinstance(format, Refittable)
        one = np.ones((1, 1), np.float32)
        grid = format.grid(format.project({}, slice(0, 1), one, one).params)
        assert isinstance(grid, Grid)
        table = np.asarray(grid.table, np.float64)
        if grid.offset is None:
            levels = np.unique(table[table != 0])
            return cls(table, False, levels[np.argsort(-np.abs(levels), kind="stable")])
        return cls(table, True, np.arange(len(table) - 1, 0, -1, dtype=np.float64))

    def tried(self, blocks: _Blocks, target: float) -> Iterator[_Try]:
        """What to try for a target."""
        if self.shifted and not isinstance(blocks.format, Affine):
            yield from _with_free_offset(blocks, target)
            return
        x = blocks.x
        if not self.shifted:
            largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
            levels = self.table[_nearest(_units(x, largest / target), self.table)]
            yield _Try(blocks.scale(levels), None)
            return
        span = x.max(axis=1, initial=0) - x.min(axis=1, initial=0)
        levels = np.round(_units(x, span[:, None] / target))  # counted from zero, which has a code on every such grid
        scale = blocks.scale(levels)
        zero = np.clip(-levels.min(axis=1), 0, len(self.table) - 1)
        yield _Try(scale, (len(self.table) // 2 - zero) * scale)


@dataclass(frozen=True)
class _Try:
    """Scales and offsets, float64 [blocks]; no offsets where the grid has none."""

    scale: np.ndarray
    offset: np.ndarray | None


def _recovered(w: np.ndarray, format: Format) -> tuple[QuantTensor, np.ndarray]:
    rows, cols = w.shape
    layout = format.params_layout(rows, cols)
    block = _block(format, cols)
    every = _Blocks.of(w.reshape(-1, block), format, precision_of(w))
    codes = np.zeros((rows * cols // block, block), np.uint8)
    params = {name: np.zeros(len(codes), dtype) for name, (_, dtype) in layout.items()}
    found = np.zeros(len(codes), bool)
    search = _Search.of(format)
    for target in search.targets:
        at = np.flatnonzero(~found)
        if not len(at):
            break
        now = every.some(at)
        for attempt in search.tried(now, float(target)):
            tensor, same = now.solved(attempt)
            codes[at[same]] = tensor.codes[same]
            for name, values in tensor.params.items():
                params[name][at[same]] = np.asarray(values)[same, 0]
            found[at[same]] = True
    shaped = {name: values.reshape(layout[name][0]) for name, values in params.items()}
    whole: np.ndarray = np.all(found.reshape(rows, -1), axis=1)
    return QuantTensor(format, codes.reshape(rows, cols), shaped), whole


def _with_free_offset(blocks: _Blocks, steps: float) -> Iterator[_Try]:
    """What to try where offsets are any numbers, if that many steps lie between the least and the largest weight."""
    x = blocks.x
    least, most = x.min(axis=1), x.max(axis=1)
    levels = np.round(_units(x - least[:, None], (most - least)[:, None] / steps))
    mean, middle = levels.mean(axis=1), x.mean(axis=1)
    spread = np.square(levels - mean[:, None]).sum(axis=1)
    slope = ((levels - mean[:, None]) * x).sum(axis=1) / np.where(spread != 0, spread, np.inf)
    yield _Try(slope, middle - slope * mean)
    at = x.argmin(axis=1)[:, None]
    low, high = (np.take_along_axis(each, at, axis=1)[:, 0] for each in (blocks.low, blocks.high))
    coarse = blocks.precision.name == "bfloat16"  # offsets are more precise than such weights
    for share in _SHARES if coarse else (0.5,):
        offset = low + (high - low) * share
        moved = replace(blocks, low=blocks.low - offset[:, None], high=blocks.high - offset[:, None])
        yield _Try(moved.scale(levels), offset)


def _units(x: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """x in units, [blocks, block] and [blocks, 1]; zero where the unit is zero."""
    return x / np.where(unit != 0, unit, np.inf)


def _nearest(place: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The code of the entry nearest to each place: uint8, the same shape."""
    return np.searchsorted((table[1:] + table[:-1]) / 2, place).astype(np.uint8)

"""Streaming calibration statistics of one linear group's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from bitsmith.errors import TensorError
from bitsmith.quant.grid import Array
from bitsmith.system.core import core

_CHUNK = 1 << 20  # values summed at once: bounds the float64 temporaries
MOST_GRAMS = 2 << 30  # bytes of Gram matrices of experts that are summed in one pass, if one needs no more
SUMMED_ROWS = 512  # tokens in one product x^T x; the result of longer sums depends on the number of threads
_STRIP = 128  # columns of x^T x that are computed together, from the diagonal on: the matrix is symmetric


@dataclass(frozen=True)
class Stats:
    """Statistics of an input with `cols` features over `count` tokens.

    square: [cols] float64, sum of x^2 (llama.cpp's imatrix, the Hessian's diagonal)
    mean_abs, max_abs: [cols] float32, mean and largest |x|; empty from a `GramMeter`
    gram: [cols, cols] float32, sum of x^T x; None if not requested. A `GramMeter` returns its input's kind of array
    sample: [tokens, cols] float32, rows drawn with a seed; empty if not requested
    """

    count: int
    square: np.ndarray
    mean_abs: np.ndarray
    max_abs: np.ndarray
    gram: Array | None
    sample: np.ndarray

    @property
    def importance(self) -> np.ndarray:
        """Mean of x^2 per column, float32 [cols]: the importance that `Format.fit` takes."""
        return (self.square / max(self.count, 1)).astype(np.float32)


class GramMeter:
    """Sums the Gram matrix only, in float32, on the input's device."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Array = None
        self._half = False  # whether only the upper triangle of the sum is there
        self._waiting: tuple[Array, Array] | None = None  # rows of a batch that is not whole, fewer than SUMMED_ROWS

    def add(self, x: Array, other: Array = None) -> None:
        """Add tokens: float32 [..., cols], numpy or torch. With `other`, of the same shape, sum other^T x instead."""
        self.piece(x, other)
        self.end()

    def piece(self, x: Array, other: Array = None) -> None:
        """Add a piece of a batch; see `add`. After the last one call `end`; the sum is then that of the whole batch."""
        xp = array_namespace(x)
        rows = xp.reshape(x, (-1, x.shape[-1]))
        left = rows if other is None else xp.reshape(other, (-1, other.shape[-1]))
        self._half = other is None
        if self._sum is None:
            self._sum = xp.zeros((rows.shape[1], rows.shape[1]), dtype=xp.float32, device=rows.device)
        self._count += rows.shape[0]
        if self._waiting is not None:
            before, rows_before = self._waiting
            left, rows = xp.concat([before, left]), xp.concat([rows_before, rows])
        whole = rows.shape[0] // SUMMED_ROWS * SUMMED_ROWS
        for start in range(0, whole, SUMMED_ROWS):
            stop = start + SUMMED_ROWS
            add_products(self._sum, left[start:stop], rows[start:stop], symmetric=self._half)
        self._waiting = (left[whole:], rows[whole:]) if whole < rows.shape[0] else None

    def end(self) -> None:
        """A batch is whole: add the rows that wait."""
        if self._waiting is not None:
            left, rows = self._waiting
            add_products(self._sum, left, rows, symmetric=self._half)
            self._waiting = None

    @property
    def sum(self) -> Array:
        """The sum so far, [cols, cols]; None before the first `add`."""
        if self._half:
            mirror(self._sum)
        return self._sum

    @property
    def count(self) -> int:
        """Number of tokens so far."""
        return self._count

    def result(self) -> Stats:
        """The statistics; call `add` first. Raises TensorError if a value was NaN or infinite."""
        xp = array_namespace(self.sum)
        square = _numpy(xp.asarray(xp.linalg.diagonal(self.sum))).astype(np.float64)
        if not np.isfinite(square).all():
            column = int(np.flatnonzero(~np.isfinite(square))[0])
            raise TensorError(f"the input holds NaN or infinite values, the first in column {column}")
        empty = np.zeros(0, np.float32)
        return Stats(self._count, square, empty, empty, self.sum, np.zeros((0, len(square)), np.float32))


class StatsMeter:
    """Sums the statistics of an input that comes in batches.

    The size of the batches changes only the last bits of the sums. Sums of x^2 and |x| are float64. The Gram matrix
    is a sum of float32 products, added in float32 to save memory.
    The sample is uniform without replacement. Each token gets a random number from the seed, and the `sample` tokens
    with the lowest numbers stay, in order. Meters with the same seed that see the same tokens keep the same ones.
    """

    def __init__(self, cols: int, *, gram: bool = False, sample: int = 0, seed: int = 0) -> None:
        self._count = 0
        self._square = np.zeros(cols, np.float64)
        self._sum_abs = np.zeros(cols, np.float64)
        self._max_abs = np.zeros(cols, np.float32)
        self._gram: Array = None
        self._wants_gram = gram
        self._size = sample
        self._random = np.random.default_rng(seed)
        self._drawn = np.zeros(0, np.float64)
        self._kept = np.zeros((0, cols), np.float32)

    def add(self, x: Array) -> None:
        """Add tokens: float32 [..., cols], numpy or torch.

        Raises TensorError if a value is NaN or infinite; nothing is added then.
        """
        xp = array_namespace(x)
        rows = xp.reshape(x, (-1, x.shape[-1]))
        square, sizes, largest = _column_sums(rows)
        if not np.isfinite(largest).all():
            column = int(np.flatnonzero(~np.isfinite(largest))[0])
            raise TensorError(f"the input holds NaN or infinite values, the first in column {column}")
        self._sum_abs += sizes
        self._square += square
        self._max_abs = np.maximum(self._max_abs, largest)
        if self._wants_gram:
            for start in range(0, rows.shape[0], SUMMED_ROWS):
                part = rows[start : start + SUMMED_ROWS]
                if self._gram is None:
                    self._gram = xp.zeros((rows.shape[1], rows.shape[1]), dtype=xp.float32, device=rows.device)
                add_products(self._gram, part, part, symmetric=True)
        if self._size:
            self._draw(rows)
        self._count += rows.shape[0]

    def _draw(self, rows: Array) -> None:
        drawn = np.concatenate([self._drawn, self._random.random(rows.shape[0])])
        chosen = np.sort(np.argsort(drawn, kind="stable")[: self._size])
        new = chosen[chosen >= len(self._drawn)] - len(self._drawn)
        kept = self._kept[chosen[chosen < len(self._drawn)]]
        self._kept = np.concatenate([kept, *(_numpy(rows[int(row)])[None] for row in new)])
        self._drawn = drawn[chosen]

    def result(self) -> Stats:
        """The statistics so far, in new arrays."""
        gram = None
        if self._wants_gram:
            cols = len(self._square)
            gram = np.zeros((cols, cols), np.float32) if self._gram is None else np.array(_numpy(mirror(self._gram)))
        return Stats(
            count=self._count,
            square=self._square.copy(),
            mean_abs=(self._sum_abs / max(self._count, 1)).astype(np.float32),
            max_abs=self._max_abs.copy(),
            gram=gram,
            sample=self._kept.copy(),
        )


def add_products(total: Array, left: Array, right: Array, *, symmetric: bool) -> None:
    """Add left^T right to `total`, float32 [cols, cols], in place. left, right: float32 [tokens, cols]

    symmetric: whether both are the same; then only what lies on and above the diagonal is added, see `mirror`
    """
    cols = total.shape[0]
    step = _STRIP if symmetric and not _accelerated(total) else cols
    for start in range(0, cols, step):
        strip, first = slice(start, start + step), start if symmetric else 0
        if isinstance(total, np.ndarray):
            total[strip, first:] += left[:, strip].T @ right[:, first:]
        else:
            total[strip, first:].addmm_(left[:, strip].T, right[:, first:])


def mirror(total: Array) -> Array:
    """Copy what lies above the diagonal to the places below it, in place. Returns `total`."""
    for start in range(0, total.shape[0], _STRIP):
        strip = slice(start, start + _STRIP)
        rows, own = total[strip, start + _STRIP :], total[strip, strip]
        total[start + _STRIP :, strip] = rows.T
        xp = array_namespace(own)
        total[strip, strip] = xp.triu(own) + xp.triu(own, k=1).T
    return total


def _column_sums(rows: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of squares and of magnitudes, float64 [cols], and the largest magnitudes, float32 [cols].

    rows: float32 [tokens, cols], numpy or torch
    """
    module = core()
    if module is None or not hasattr(module, "column_sums") or _accelerated(rows) or not rows.shape[0]:
        return _column_sums_by_array(rows)
    cols = rows.shape[1]
    square, sizes, largest = np.zeros(cols), np.zeros(cols), np.zeros(cols, np.float32)
    x = np.ascontiguousarray(_numpy(rows), np.float32)
    module.column_sums(x, square=square, magnitude=sizes, largest=largest)
    return square, sizes, largest


def _column_sums_by_array(rows: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_column_sums` without the core: the definition."""
    xp = array_namespace(rows)
    square, sizes = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    largest = _numpy(xp.max(xp.abs(rows), axis=0))
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        wide = xp.abs(xp.astype(rows[start : start + step], xp.float64))
        sizes += _numpy(xp.sum(wide, axis=0))
        square += _numpy(xp.sum(wide * wide, axis=0))
    return square, sizes, largest


def _accelerated(x: Array) -> bool:
    return not isinstance(x, np.ndarray) and x.device.type != "cpu"


def _numpy(x: Array) -> np.ndarray:
    """A numpy array or a torch tensor on any device, as a numpy array."""
    return np.asarray(x if isinstance(x, np.ndarray) else x.detach().cpu().numpy())

"""Streaming calibration statistics of one linear group's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from bitsmith.calibration.grams import SUMMED_ROWS, GramSum, accelerated
from bitsmith.errors import TensorError
from bitsmith.quant.grid import Array
from bitsmith.quant.rounders.damping import DAMPING, damping_for
from bitsmith.system.core import core

_CHUNK = 1 << 20  # values summed at once: bounds the float64 temporaries
MOST_GRAMS = 2 << 30  # bytes of Gram matrices of experts that are summed in one pass, if one needs no more


@dataclass(frozen=True)
class Stats:
    """Statistics of an input with `cols` features over `count` tokens.

    square: [cols] float64, sum of x^2 (llama.cpp's imatrix, the Hessian's diagonal)
    mean_abs, max_abs: [cols] float32, mean and largest |x|; empty from a `GramMeter`
    gram: [cols, cols] float32, sum of x^T x; None if not requested. A `GramMeter` returns its input's kind of array
    sample: [tokens, cols] float32, rows drawn with a seed; empty if not requested
    exact: whether the sums are no sample, as they are known from weights and not from a text
    """

    count: int
    square: np.ndarray
    mean_abs: np.ndarray
    max_abs: np.ndarray
    gram: Array | None
    sample: np.ndarray
    exact: bool = False

    @property
    def importance(self) -> np.ndarray:
        """Mean of x^2 per column, float32 [cols]: the importance that `Format.fit` takes."""
        return (self.square / max(self.count, 1)).astype(np.float32)

    @property
    def damping(self) -> float:
        """The damping that the mean of the Gram matrix needs, see `damping_for`."""
        return DAMPING if self.exact else damping_for(len(self.square), max(self.count, 1))


class GramMeter:
    """Sums the Gram matrix only, and with inputs of another model the drift; see `GramSum`."""

    def __init__(self, *, rounded: bool = False) -> None:
        self._count = 0
        self._sum = GramSum(rounded=rounded)
        self._waiting: tuple[Array, Array] | None = None  # rows of a batch that is not whole, fewer than SUMMED_ROWS

    def add(self, x: Array, original: Array = None) -> None:
        """Add tokens: float32 [..., cols] each, numpy or torch. original: the same tokens' inputs in another model"""
        self.piece(x, original)
        self.end()

    def piece(self, x: Array, original: Array = None) -> None:
        """Add a piece of a batch; see `add`. After the last one call `end`; the sum is then that of the whole batch."""
        xp = array_namespace(x)
        rows = xp.reshape(x, (-1, x.shape[-1]))
        before = None if original is None else xp.reshape(original, (-1, x.shape[-1]))
        self._count += rows.shape[0]
        if self._waiting is not None:
            waiting, waiting_before = self._waiting
            rows = xp.concat([waiting, rows])
            before = None if before is None else xp.concat([waiting_before, before])
        whole = rows.shape[0] // SUMMED_ROWS * SUMMED_ROWS
        if whole:
            self._sum.add(rows[:whole], None if before is None else before[:whole])
        rest = (rows[whole:], None if before is None else before[whole:])
        self._waiting = rest if whole < rows.shape[0] else None

    def end(self) -> None:
        """A batch is whole: add the rows that wait."""
        if self._waiting is not None:
            self._sum.add(*self._waiting)
            self._waiting = None

    @property
    def count(self) -> int:
        """Number of tokens so far."""
        return self._count

    def taken(self) -> tuple[Stats, Array]:
        """The statistics, and the drift: the sum of (x0 - x)^T x, [cols, cols]; None without inputs x0.

        Call `add` first. Nothing is kept. Raises TensorError if a value was NaN or infinite.
        """
        gram, drift = self._sum.taken()
        return self._stats(gram), drift

    def result(self) -> Stats:
        """The statistics; call `add` first. Raises TensorError if a value was NaN or infinite."""
        return self._stats(self._sum.gram)

    def _stats(self, gram: Array) -> Stats:
        xp = array_namespace(gram)
        square = _numpy(xp.asarray(xp.linalg.diagonal(gram))).astype(np.float64)
        if not np.isfinite(square).all():
            column = int(np.flatnonzero(~np.isfinite(square))[0])
            raise TensorError(f"the input holds NaN or infinite values, the first in column {column}")
        empty = np.zeros(0, np.float32)
        return Stats(self._count, square, empty, empty, gram, np.zeros((0, len(square)), np.float32))


class StatsMeter:
    """Sums the statistics of an input that comes in batches.

    The size of the batches changes only the last bits of the sums. Sums of x^2 and |x| are float64. The Gram matrix
    is a sum of float32 products, added in float32 to save memory.
    The sample is uniform without replacement. Each token gets a random number from the seed, and the `sample` tokens
    with the lowest numbers stay, in order. Meters with the same seed that see the same tokens keep the same ones.
    """

    def __init__(self, cols: int, *, gram: bool = False, sample: int = 0, seed: int = 0, rounded: bool = False) -> None:
        """rounded: whether the Gram matrix may be that of inputs rounded to bfloat16, see `GramSum`."""
        self._count = 0
        self._square = np.zeros(cols, np.float64)
        self._sum_abs = np.zeros(cols, np.float64)
        self._max_abs = np.zeros(cols, np.float32)
        self._gram = GramSum(rounded=rounded) if gram else None
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
        if self._gram is not None:
            self._gram.add(rows)
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
        if self._gram is not None:
            cols, found = len(self._square), self._gram.gram
            gram = np.zeros((cols, cols), np.float32) if found is None else np.array(_numpy(found))
        return Stats(
            count=self._count,
            square=self._square.copy(),
            mean_abs=(self._sum_abs / max(self._count, 1)).astype(np.float32),
            max_abs=self._max_abs.copy(),
            gram=gram,
            sample=self._kept.copy(),
        )


def _column_sums(rows: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of squares and of magnitudes, float64 [cols], and the largest magnitudes, float32 [cols].

    rows: float32 [tokens, cols], numpy or torch
    """
    module = core()
    if module is None or not hasattr(module, "column_sums") or accelerated(rows) or not rows.shape[0]:
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


def _numpy(x: Array) -> np.ndarray:
    """A numpy array or a torch tensor on any device, as a numpy array."""
    return np.asarray(x if isinstance(x, np.ndarray) else x.detach().cpu().numpy())

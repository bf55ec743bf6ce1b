"""How far an input has moved from the original model's, and how much of that weights can be corrected for.

A correction is a regression on the calibration tokens. What it explains there by chance, about columns / tokens of what
moved, it adds elsewhere. Sums over two halves of the tokens tell one from the other: chance differs between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.grams import SUMMED_ROWS
from bitsmith.quant.rounders.hessian import Factor, solved
from bitsmith.runtime.kernel import Weight

PROBED = 64  # rows of a group's matrices that are looked at: shares differ by less than .02 from those of all rows


@dataclass(frozen=True)
class Half:
    """The drift of about half of the tokens, as some rows of the weights see it.

    probe: rows of the matrices that read the input, float32 [n, cols]
    seen: their products with the sum of (x - x')^T x' over these tokens, float32 [n, cols]
    count: number of these tokens
    """

    probe: Tensor
    seen: Tensor
    count: int


@dataclass(frozen=True)
class Drift:
    """The sum of (x - x')^T x' over tokens: x inputs of the original model, x' those of the rounded blocks.

    total: [cols, cols] float32
    half: None: weights are corrected for all of it
    """

    total: Tensor
    half: Half | None = None

    def split(self, count: int) -> Split | None:
        """The means over both halves and over all `count` tokens; None if there is no second half."""
        half = self.half
        if half is None or not 0 < half.count < count:
            return None
        whole = half.probe @ self.total
        return Split(half.seen / half.count, (whole - half.seen) / (count - half.count), whole / count)


@dataclass(frozen=True)
class Split:
    """Mean drifts of two halves of the tokens, and of all, as some rows of the weights see them: float32 [n, cols]."""

    first: Tensor
    second: Tensor
    both: Tensor

    def cpu(self) -> Split:
        """The same in the host's memory."""
        return Split(self.first.cpu(), self.second.cpu(), self.both.cpu())

    def share(self, factor: Factor) -> float:
        """The share of the correction that lowers the error of outputs most on tokens that it was not made from.

        factor: of the mean of x'^T x'
        With C = W D H^-1 the correction, D_1 and D_2 the drifts of two halves: a share s of it changes the squared
        error by -2 s tr(W D_1 H^-1 D_2^T W^T) + s^2 tr(W D H^-1 D^T W^T), all as means. Between 0 and 1.
        """
        found = float((solved(factor, self.first).double() * self.second.double()).sum())
        cost = float((solved(factor, self.both).double() * self.both.double()).sum())
        return min(max(found / cost, 0.0), 1.0) if cost > 0 else 1.0


@dataclass
class HalfMeter:
    """Sums a `Half`: every second stretch of at most `SUMMED_ROWS` tokens of a window, in order."""

    probe: Tensor
    _seen: Tensor = field(init=False)
    _count: int = field(default=0, init=False)
    _stretches: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._seen = torch.zeros_like(self.probe)

    @classmethod
    def of(cls, matrices: Sequence[Tensor]) -> HalfMeter:
        """matrices: those that read the input, float32 [rows, cols] each; some rows of each are looked at."""
        most = max(1, PROBED // len(matrices))
        return cls(torch.cat([each[:: -(-each.shape[0] // most)] for each in matrices]))

    def add(self, x: Tensor, original: Tensor) -> None:
        """Add windows: x' and x, float32 [..., n, cols] each."""
        for window, before in zip(x.reshape(-1, *x.shape[-2:]), original.reshape(-1, *x.shape[-2:]), strict=True):
            for start in range(0, window.shape[0], SUMMED_ROWS):
                if self._stretches % 2 == 0:
                    part = window[start : start + SUMMED_ROWS]
                    moved = (before[start : start + SUMMED_ROWS] - part) @ self.probe.T
                    self._seen.addmm_(moved.T, part)
                    self._count += part.shape[0]
                self._stretches += 1

    def result(self) -> Half:
        """The sums so far."""
        return Half(self.probe, self._seen, self._count)


def some_rows(weight: Weight) -> np.ndarray:
    """Rows from all over a matrix that is not in memory, float32 [at most PROBED, cols]."""
    step = -(-weight.info.rows // PROBED)
    return np.concatenate([weight.rows(row, row + 1) for row in range(0, weight.info.rows, step)])

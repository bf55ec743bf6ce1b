"""A slab of weights during rounding: its grid by columns, the levels chosen so far, and their error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitsmith.quant.grid import Grid
from bitsmith.quant.rounders.hessian import STEP, Factor
from bitsmith.quant.scale_search import tree_sum

STRIP = 32  # columns that pass errors on one by one; wider updates are matrix products


class ColumnGrid:
    """A grid by columns, with blocks that can change. Finds the level nearest to a target; ties go to the lower one.

    block: number of neighbouring columns that share a scale
    scale, offset: [blocks, rows] float32; offset is None if the format has no offset
    """

    def __init__(self, grid: Grid, cols: int) -> None:
        self.block = grid.block or cols
        self.scale: Tensor = grid.scale.T.contiguous()
        self.offset: Tensor | None = None if grid.offset is None else grid.offset.T.contiguous()
        self._divisor = _divisor(self.scale)
        self._table: Tensor = grid.table
        self._middles: Tensor = (grid.table[1:] + grid.table[:-1]) * 0.5
        self._ends = float(grid.table[0]), float(grid.table[-1])
        steps = grid.table[1:] - grid.table[:-1]
        self._counts = bool((steps == 1).all()) and self._ends[0].is_integer()

    def level(self, column: int, target: Tensor) -> Tensor:
        """The nearest table entry for each target: [rows] -> [rows]. May overwrite `target`."""
        at = column // self.block
        if self.offset is not None:
            target = target.sub_(self.offset[at])
        target = target.div_(self._divisor[at])
        if self._counts:
            return target.sub_(0.5).ceil_().clamp_(*self._ends)
        return self._table[torch.bucketize(target, self._middles)]

    def value(self, column: int, level: Tensor) -> Tensor:
        """The decoded value of table entries: [rows] -> [rows]."""
        at = column // self.block
        value = level * self.scale[at]
        return value if self.offset is None else value.add_(self.offset[at])

    def change(self, at: int, scale: Tensor, offset: Tensor | None) -> None:
        """Give block `at` another scale and offset, [rows] each."""
        self.scale[at] = scale
        self._divisor[at] = _divisor(scale)
        if self.offset is not None and offset is not None:
            self.offset[at] = offset

    def codes(self, levels: Tensor) -> Tensor:
        """Codes of table entries: [cols, rows] -> uint8 [cols, rows]."""
        if self._counts:
            return (levels - self._ends[0]).to(torch.uint8)
        return torch.bucketize(levels, self._middles).to(torch.uint8)


def _divisor(scale: Tensor) -> Tensor:
    """Divisors from scales: infinity for a scale of zero, so that all targets of the block become zero."""
    return torch.where(scale != 0, scale, torch.inf)


class Columns(Protocol):
    """A grid by columns, whose blocks can change: `ColumnGrid`, and `VectorColumns` of code books."""

    block: int
    scale: Tensor

    @property
    def offset(self) -> Tensor | None: ...

    def change(self, at: int, scale: Tensor, offset: Tensor | None) -> None:
        """Give block `at` another scale and offset, [rows] each."""
        ...


@dataclass
class Slab:
    """Rows being rounded, transposed so that a column is contiguous in memory.

    weights: [cols, rows] float32
    levels: chosen table entries, [cols, rows] float32
    error: weights minus the values of `levels`, [cols, rows] float32
    params: the format's parameters, [rows, ...] in stored precision; changed together with `column_grid`
    """

    weights: Tensor
    levels: Tensor
    error: Tensor
    column_grid: Columns
    params: dict[str, Tensor]


def product(columns: Tensor, x: Tensor) -> Tensor:
    """columns^T x: [n, k], [n, rows] -> [k, rows], on a CPU summed in order over STEP rows at a time."""
    if x.device.type != "cpu":  # one launch
        return columns.T @ x
    out = torch.zeros((columns.shape[1], x.shape[1]), dtype=x.dtype, device=x.device)
    for start in range(0, columns.shape[0], STEP):
        out.addmm_(columns[start : start + STEP].T, x[start : start + STEP])
    return out


def column_sum(x: Tensor) -> Tensor:
    """The sum over the first axis, [n, rows] -> [rows], in an order that depends only on n."""
    n = x.shape[0]
    if n & (n - 1) == 0:
        return torch.as_tensor(tree_sum(x))
    folded = torch.zeros((STEP, x.shape[1]), dtype=x.dtype, device=x.device)
    for start in range(0, n, STEP):
        part = x[start : start + STEP]
        folded[: part.shape[0]] += part
    return torch.as_tensor(tree_sum(folded))


def output_error(error: Tensor, factor: Factor) -> Tensor:
    """e H e^T of each row, without damping: [cols, rows] -> float64 [rows].

    The factor gives it as a sum of squares, at half the cost of a product with the Hessian.
    """
    ordered = error if factor.natural else error[factor.order]
    u = factor.feedback
    total = torch.zeros(error.shape[1], dtype=torch.float64, device=error.device)
    for start in range(0, factor.cols, STEP):
        stop = min(start + STEP, factor.cols)
        owed = ordered[start:stop] + product(u[:start, start:stop], ordered[:start])
        owed.addmm_(torch.triu(u[start:stop, start:stop], 1).T, ordered[start:stop])
        squares = owed.square_().mul_(factor.pivots[start:stop, None])
        ridge = ordered[start:stop].square().mul_(factor.added[factor.order[start:stop], None])
        total += column_sum(squares.double() - ridge.double())
    return total.clamp_(min=0.0)

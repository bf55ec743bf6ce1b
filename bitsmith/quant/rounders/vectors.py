"""GPTQ for vectors of eight weights (IQ1, IQ2, IQ3): a vector is rounded at once, and its error is passed on.

This is block LDLQ, as QuIP# rounds into its lattice (Tseng et al. 2024). For errors e of a vector's columns the cost
is e M e^T, with M the vector's block of U D U^T (see `hessian`). A code with a small cost is found by majorisation: for
a diagonal L with L - M positive semidefinite, the code nearest under L to v + (t - v) M / L costs no more than v does,
for the target t. Coordinate descent over vectors under the whole Hessian takes the same step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.quant.book_search import nearest_codes
from bitsmith.quant.formats.code_books import SHIFT, CodeBookFormat
from bitsmith.quant.rounders.column_grid import Slab, product
from bitsmith.quant.rounders.descent import refit_blocks, slope_of
from bitsmith.quant.rounders.hessian import STEP, Factor
from bitsmith.quant.vector_grid import VECTOR, VectorGrid

_MAJORISED = 2  # steps after the nearest code under the diagonal


class VectorColumns:
    """The grid of a slab by columns, whose scales can change; see `ColumnGrid`. Levels are a code's, with their shift.

    scale: [blocks, rows] float32
    codes: [vectors, rows] int32, chosen so far
    """

    offset: None = None

    def __init__(self, format: CodeBookFormat, params: dict[str, Tensor]) -> None:
        self.block = format.block
        self.scale: Tensor = torch.as_tensor(format.scales(params)).T.contiguous()
        vectors = self.scale.shape[0] * self.block // VECTOR
        self.codes = torch.zeros((vectors, self.scale.shape[1]), dtype=torch.int32, device=self.scale.device)
        self._book = format.book
        self._side: Tensor | None = None
        if format.shifts:
            self._side = (SHIFT - 2.0 * SHIFT * params["shifts"].float()).T.contiguous()

    def choose(self, vector: int, target: Tensor, weights: Tensor) -> Tensor:
        """Give a vector the nearest codes for its target: [8, rows] -> their levels [8, rows]. weights: [8], > 0"""
        at = vector * VECTOR // self.block
        scale = self.scale[at][:, None].contiguous()
        side = None if self._side is None else self._side[at][:, None]
        grid = VectorGrid(self._book, scale, None if side is None else side.contiguous(), VECTOR)
        codes = nearest_codes(grid, target.T.contiguous(), weights)
        self.codes[vector] = codes[:, 0]
        levels = self._book.levels(codes[:, 0])
        shifted: Tensor = levels if side is None else levels + side
        return shifted.T.contiguous()

    def value(self, vector: int, levels: Tensor) -> Tensor:
        """The decoded values of levels: [8, rows] -> [8, rows]."""
        return levels * self.scale[vector * VECTOR // self.block]

    def change(self, at: int, scale: Tensor, offset: Tensor | None) -> None:
        """Give block `at` another scale, [rows]."""
        self.scale[at] = scale


def feedback(weights: Tensor, format: CodeBookFormat, params: dict[str, Tensor], factor: Factor) -> Slab:
    """GPTQ's pass over weights [cols, rows], vector by vector in the factor's order, which keeps vectors together."""
    cols = factor.cols
    columns = VectorColumns(format, params)
    order, u = factor.order, factor.feedback
    ordered = weights[order]
    levels, error = torch.empty_like(weights), torch.empty_like(weights)
    for start in range(0, cols, STEP):
        stop = min(start + STEP, cols)
        target = product(u[:start, start:stop], error[:start]).add_(ordered[start:stop])
        for left in range(start, stop, VECTOR):
            here, right = slice(left, left + VECTOR), left + VECTOR
            vector = int(order[left]) // VECTOR
            upper = torch.triu(u[here, here], 1) + torch.eye(VECTOR, device=u.device)
            metric = (upper * factor.pivots[here]) @ upper.T
            own = target[left - start : right - start]
            chosen = _nearest(columns, vector, own, metric)
            levels[vector * VECTOR : (vector + 1) * VECTOR] = chosen
            error[here] = ordered[here] - columns.value(vector, chosen)
            if right < stop:
                target[right - start :].addmm_(u[here, right:stop].T, error[here])
    by_column = torch.empty_like(error)
    by_column[order] = error
    return Slab(weights, levels, by_column, columns, params)


def _nearest(columns: VectorColumns, vector: int, target: Tensor, metric: Tensor) -> Tensor:
    """Levels of codes with a small cost (t - v) M (t - v)^T for the target t, [8, rows]."""
    levels = columns.choose(vector, target, metric.diagonal().contiguous())
    above = metric.abs().sum(dim=1)
    for _ in range(_MAJORISED):
        value = columns.value(vector, levels)
        moved = value + (metric @ (target - value)) / above[:, None]
        levels = columns.choose(vector, moved, above)
    return levels


def descend(slab: Slab, format: CodeBookFormat, factor: Factor, *, refit: bool) -> None:
    """One sweep over all vectors, from left to right: refitted scales, then codes. Changes `slab`."""
    columns = slab.column_grid
    assert isinstance(columns, VectorColumns)
    for start in range(0, factor.cols, STEP):
        stop = min(start + STEP, factor.cols)
        slope = slope_of(slab, factor, start, stop)
        if refit:
            refit_blocks(slab, format, factor, slope, start)
        for left in range(start, stop, VECTOR):
            here, right = slice(left, left + VECTOR), left + VECTOR
            near = factor.hessian[here, here] + torch.diag(factor.added[here])
            above = near.abs().sum(dim=1)
            value = slab.weights[here] - slab.error[here]
            target = value + slope[left - start : right - start] / above[:, None]
            levels = columns.choose(left // VECTOR, target, above)
            new = slab.weights[here] - columns.value(left // VECTOR, levels)
            slab.levels[here] = levels
            change = new - slab.error[here]
            slab.error[here] = new
            if right < stop:
                slope[right - start :].addmm_(factor.hessian[here, right:stop].T, change)

"""GPTQ's pass and coordinate descent on an accelerator: kernels of `triton_columns`, and large products between them.

`gptq` and `descent` on torch tensors are the definition. Here sums are taken in another order, so that a choice between
two codes that are almost equally good may differ, as in `core_slab`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format, Refittable
from bitsmith.quant.grid import Grid
from bitsmith.quant.rounders.descent import Quadratic, refitted
from bitsmith.quant.rounders.hessian import STEP, Factor
from bitsmith.system.accelerators import interpreted, runs_triton

_WIDE = 8 * STEP  # columns of an output error that are computed together
_ROWS, _FEW_ROWS = 32, 16  # rows of a program; fewer where there are not many, so that all processors have work
_MANY = 4096
_TILE = 64  # columns of a block that a refit sums together
_WARPS = 4
_STORED = {"float32": 0, "float16": 1, "bfloat16": 2}


@dataclass(frozen=True)
class Columns:
    """A grid by columns, for the kernels; see `column_grid.ColumnGrid`.

    scale, offset: [blocks, rows], changed by refits
    table, middles: padded for a search in `bits` halvings, see `triton_columns`; not read if `bits` is 0
    low, high: the first and the last entry
    """

    block: int
    scale: Tensor
    offset: Tensor | None
    table: Tensor
    middles: Tensor
    bits: int
    low: float
    high: float

    @classmethod
    def of(cls, grid: Grid, cols: int) -> Columns:
        """The grid of rows of `cols` weights, in new tensors."""
        table: Tensor = grid.table
        offset = None if grid.offset is None else grid.offset.T.contiguous()
        low, high, steps = float(table[0]), float(table[-1]), table.diff()
        integers = low.is_integer() and bool((steps == 1).all())
        bits = 0 if integers else (len(table) - 1).bit_length()
        middles = (table[1:] + table[:-1]) * 0.5
        if bits:
            ends = torch.full(((1 << bits) - len(table),), torch.inf, device=table.device)
            middles, table = torch.cat([middles, ends]), torch.cat([table, ends])
        return cls(grid.block or cols, grid.scale.T.contiguous(), offset, table, middles, bits, low, high)

    def codes(self, levels: Tensor) -> Tensor:
        """Codes of table entries: [cols, rows] -> uint8 [cols, rows]."""
        if not self.bits:
            return (levels - self.low).to(torch.uint8)
        return torch.bucketize(levels, self.middles).to(torch.uint8)


class TritonSlab:
    """Rows [rows, cols] being rounded under a factored Hessian; see `core_slab.CoreSlab`.

    params: parameters of `feedback`, changed by `descend`; tensors in stored precision
    """

    def __init__(self, rows: Tensor, factor: Factor) -> None:
        self._rows, self._factor = rows, factor
        self._weights = rows.T.contiguous()
        self._levels, self._error = torch.empty_like(self._weights), torch.empty_like(self._weights)
        self._diagonal = factor.diagonal + factor.added
        self._columns: Columns | None = None
        self.params: dict[str, Tensor] = {}

    @classmethod
    def of(cls, rows: Tensor, factor: Factor) -> TritonSlab | None:
        """The rows, float32 [rows, cols]; None where Triton does not run."""
        return cls(rows, factor) if rows.shape[0] and runs_triton(rows.device) else None

    def nearest(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """The nearest codes, uint8 [rows, cols], and the error of their outputs, float64 [rows]."""
        codes: Tensor = grid.nearest(self._rows)
        return codes, output_error((self._rows - grid.values(codes)).T.contiguous(), self._factor)

    def feedback(self, grid: Grid, params: dict[str, Tensor]) -> None:
        """GPTQ's pass with this grid, which has these parameters."""
        factor, cols = self._factor, self._factor.cols
        self.params = params
        self._columns = Columns.of(grid, cols)
        order, u = factor.order.int(), factor.feedback
        placed = self._error if factor.natural else torch.empty_like(self._error)
        for start in range(0, cols, STEP):
            stop = min(start + STEP, cols)
            base = u[:start, start:stop].T @ placed[:start]
            coupling = torch.triu(u[start:stop, start:stop], 1).T.contiguous()
            self._choose(base, coupling, start, order, placed)
        if not factor.natural:
            self._error[factor.order] = placed

    def descend(self, format: Format, *, refit: bool) -> None:
        """One sweep; see `bitsmith.quant.rounders.descent.descend`."""
        cols, block, h = self._factor.cols, self._grid.block, self._factor.hessian
        refits = format if refit and isinstance(format, Refittable) else None
        wide = block > 2 * STEP  # a block as long as a row is refitted before all codes
        if refits is not None and wide:
            self._refit_blocks(refits, self._slope(0, cols), 0)
        step = STEP if wide else -(-STEP // block) * block
        for start in range(0, cols, step):
            stop = min(start + step, cols)
            slope = self._slope(start, stop)
            if refits is not None and not wide:
                self._refit_blocks(refits, slope, start)
            coupling = torch.triu(h[start:stop, start:stop], 1).T.contiguous()
            self._choose(slope, coupling, start, None, self._error)

    def error(self) -> Tensor:
        """The error of the outputs, float64 [rows]."""
        return output_error(self._error, self._factor)

    def codes(self) -> Tensor:
        """The codes, uint8 [rows, cols]."""
        return self._grid.codes(self._levels).T

    @property
    def _grid(self) -> Columns:
        assert self._columns is not None, "call `feedback` first"
        return self._columns

    def _slope(self, start: int, stop: int) -> Tensor:
        """(e H)^T of columns start..stop under the damped Hessian: [stop - start, rows]."""
        slope = self._factor.hessian[:, start:stop].T @ self._error
        return slope.addcmul_(self._error[start:stop], self._factor.added[start:stop, None])

    def _choose(self, base: Tensor, coupling: Tensor, start: int, order: Tensor | None, error: Tensor) -> None:
        """Choose the levels of the columns that `base` covers, from `start`. order: None for descent"""
        from bitsmith.quant.rounders import triton_columns

        grid, (count, rows) = self._grid, base.shape
        each = _rows_each(rows, _ROWS if rows >= _MANY else _FEW_ROWS)
        triton_columns.choose_columns[(-(-rows // each),)](
            base,
            coupling,
            base if order is None else order,
            self._weights,
            error,
            self._levels,
            grid.scale,
            grid.scale if grid.offset is None else grid.offset,
            grid.table,
            grid.middles,
            self._diagonal,
            rows,
            start,
            count,
            grid.block,
            grid.low,
            grid.high,
            COLUMNS=max(16, _power(count)),
            ROWS=each,
            DESCENDS=order is None,
            OFFSETS=grid.offset is not None,
            BITS=grid.bits,
            num_warps=_WARPS,
        )

    def _refit_blocks(self, format: Refittable, slope: Tensor, start: int) -> None:
        """Refit scales and offsets of the blocks that `slope` covers, from `start`. Updates `slope`."""
        block, stop = self._grid.block, start + slope.shape[0]
        for left in range(start, stop, block):
            at, here = slice(left, left + block), slice(left - start, left - start + block)
            h = self._factor.hessian[at, left:stop].clone()
            h[:, :block].diagonal().add_(self._factor.added[at])
            steep = h[:, :block].T @ self._levels[at]
            moved = torch.empty_like(steep)
            if isinstance(format, Affine):
                self._refit_affine(format, left // block, h, slope[here], steep, moved)
            else:
                self._refit_any(format, left // block, h, slope[here], steep, moved)
            slope[here.start :].addmm_(h.T, moved, alpha=-1.0)  # blocks before this one are finished

    def _refit_any(self, format: Refittable, at: int, h: Tensor, slope: Tensor, steep: Tensor, moved: Tensor) -> None:
        """Refit block `at` by the format's own `project`."""
        from bitsmith.quant.rounders import triton_columns

        grid, (block, rows) = self._grid, slope.shape
        here, offsets = slice(at * block, (at + 1) * block), grid.offset is not None
        sums = slope.new_empty((4, rows))
        each = _rows_each(rows, _FEW_ROWS)
        size, programs = {"COLUMNS": _TILE, "ROWS": each, "num_warps": _WARPS}, (-(-rows // each),)
        triton_columns.moments[programs](self._levels[here], slope, steep, sums, rows, block, **size)
        first, level, square, mass = sums
        gain = Quadratic(first, level, square, mass, h[:, :block].double().sum().float())
        now = torch.stack([grid.scale[at], grid.scale[at] if grid.offset is None else grid.offset[at]])
        offset = None if grid.offset is None else now[1]
        new_scale, new_offset = refitted(format, self.params, at, (now[0], offset), gain)
        new = torch.stack([new_scale, new_scale if new_offset is None else new_offset])
        grid.scale[at] = new_scale
        if grid.offset is not None and new_offset is not None:
            grid.offset[at] = new_offset
        arrays = self._levels[here], self._error[here], moved, now, new
        triton_columns.move[programs](*arrays, rows, block, OFFSETS=offsets, **size)

    def _refit_affine(self, format: Affine, at: int, h: Tensor, slope: Tensor, steep: Tensor, moved: Tensor) -> None:
        """Refit block `at` of integers in one launch."""
        from bitsmith.quant.rounders import triton_columns

        grid, (block, rows) = self._grid, slope.shape
        here, scale = slice(at * block, (at + 1) * block), grid.scale[at]
        offset = scale if grid.offset is None else grid.offset[at]
        zero = self.params["zero"][:, at].float() if format.asymmetric else scale
        total = h[:, :block].double().sum().float().reshape(1)
        each = _rows_each(rows, _FEW_ROWS)
        triton_columns.refit_affine[(-(-rows // each),)](
            self._levels[here],
            slope,
            steep,
            self._error[here],
            moved,
            scale,
            offset,
            zero,
            total,
            rows,
            block,
            -_largest_scale(format) if format.signed else 0.0,
            _largest_scale(format),
            float(1 << (format.bits - 1)),
            float((1 << format.bits) - 1),
            OFFSETS=format.asymmetric,
            STORED=_STORED[format.scale_dtype.name],
            COLUMNS=_TILE,
            ROWS=each,
            num_warps=_WARPS,
        )
        self.params["scale"][:, at] = scale.to(self.params["scale"].dtype)
        if format.asymmetric:
            self.params["zero"][:, at] = zero.to(torch.uint8)


def output_error(error: Tensor, factor: Factor) -> Tensor:
    """`column_grid.output_error` in few large products: [cols, rows] -> float64 [rows]."""
    ordered = error if factor.natural else error[factor.order]
    u, added = factor.feedback, factor.added[factor.order]
    total = torch.zeros(error.shape[1], dtype=torch.float64, device=error.device)
    for start in range(0, factor.cols, _WIDE):
        stop = min(start + _WIDE, factor.cols)
        owed = torch.addmm(ordered[start:stop], torch.triu(u[start:stop, start:stop], 1).T, ordered[start:stop])
        owed.addmm_(u[:start, start:stop].T, ordered[:start])
        ridge = ordered[start:stop].square().mul_(added[start:stop, None])
        total += owed.square_().mul_(factor.pivots[start:stop, None]).sub_(ridge).sum(0, dtype=torch.float64)
    return total.clamp_(min=0.0)


def _rows_each(rows: int, usual: int) -> int:
    """Rows of a program: all of many under the interpreter, which runs one program after the other."""
    return _power(rows) if interpreted() and rows >= _FEW_ROWS * _FEW_ROWS else usual


def _power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


@cache
def _largest_scale(format: Affine) -> float:
    """The largest scale that a format stores."""
    return float(format.project({}, slice(0, 1), torch.full((1, 1), torch.inf), None).scale)

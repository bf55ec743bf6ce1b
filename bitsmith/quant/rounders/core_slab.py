"""GPTQ's pass and coordinate descent in the C++ core, on all rows of a slab at once.

`gptq` and `descent` on torch tensors are the definition. Here sums are taken in another order, so that a choice between
two codes that are almost equally good may differ. The codes depend neither on the slab's size nor on the number of
threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bitsmith.quant.formats.base import Format, Refittable
from bitsmith.quant.grid import Grid
from bitsmith.quant.rounders.descent import Quadratic, refitted
from bitsmith.quant.rounders.hessian import STEP, Factor
from bitsmith.system.core import core

if TYPE_CHECKING:
    from bitsmith.system import _core


class CoreSlab:
    """Rows [rows, cols] being rounded under a factored Hessian.

    params: parameters of `feedback`, changed by `descend`; tensors in stored precision
    """

    def __init__(self, weights: np.ndarray, factor: Factor, made: _core.Slab) -> None:
        self._made, self._factor = made, factor
        self._rows, self._cols = weights.shape
        self.params: dict[str, Tensor] = {}

    @classmethod
    def of(cls, rows: Tensor, factor: Factor, isa: str = "") -> CoreSlab | None:
        """The rows, float32 [rows, cols]; None if they are not on the CPU, or there is no core that can do it.

        isa: the instruction set to use; "" is the best available one
        """
        module = core()
        if rows.device.type != "cpu" or not rows.shape[0] or module is None or not hasattr(module, "Slab"):
            return None
        weights = np.ascontiguousarray(rows.numpy(), np.float32)
        order = None if factor.natural else np.ascontiguousarray(factor.order.numpy(), np.int64)
        parts = (factor.hessian, factor.feedback, factor.pivots, factor.added)
        inner = module.Factor(*(np.ascontiguousarray(part.numpy(), np.float32) for part in parts), order)
        return cls(weights, factor, module.Slab(weights, inner, threads=torch.get_num_threads(), isa=isa))

    def nearest(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """The nearest codes, uint8 [rows, cols], and the error of their outputs, float64 [rows]."""
        codes, error = np.empty((self._rows, self._cols), np.uint8), np.empty(self._rows)
        self._made.nearest(*_columns(grid), codes=codes, error=error)
        return torch.from_numpy(codes), torch.from_numpy(error)

    def feedback(self, grid: Grid, params: dict[str, Tensor]) -> None:
        """GPTQ's pass with this grid, which has these parameters."""
        self._table, self._scale, self._offset = _columns(grid)
        self.params = params
        self._made.feedback(self._table, self._scale, self._offset)

    def descend(self, format: Format, *, refit: bool) -> None:
        """One sweep; see `bitsmith.quant.rounders.descent.descend`."""
        cols, block = self._cols, self._cols // len(self._scale)
        refits = format if refit and isinstance(format, Refittable) else None
        wide = block > 2 * STEP
        if refits is not None and wide:
            self._made.slope(0, cols)
            self._refit(refits, 0)
        step = STEP if wide else -(-STEP // block) * block
        for start in range(0, cols, step):
            stop = min(start + step, cols)
            self._made.slope(start, stop)
            if refits is not None and not wide:
                for left in range(start, stop, block):
                    self._refit(refits, left)
            self._made.recode(self._table, self._scale, self._offset)

    def error(self) -> Tensor:
        """The error of the outputs, float64 [rows]."""
        error = np.empty(self._rows)
        self._made.output_error(error)
        return torch.from_numpy(error)

    def codes(self) -> Tensor:
        """The codes, uint8 [rows, cols]."""
        codes = np.empty((self._rows, self._cols), np.uint8)
        self._made.codes(self._table, codes)
        return torch.from_numpy(codes)

    def _refit(self, format: Refittable, left: int) -> None:
        """Refit scale and offset of the block that begins at column `left`."""
        block = self._cols // len(self._scale)
        at, here = left // block, slice(left, left + block)
        sums = np.empty((4, self._rows), np.float32)
        self._made.moments(left, block, sums)
        total = self._factor.hessian[here, here].double().sum() + self._factor.added[here].double().sum()
        first, level, square, mass = torch.from_numpy(sums)
        gain = Quadratic(first, level, square, mass, total.float())
        scale = torch.from_numpy(self._scale[at])
        offset = None if self._offset is None else torch.from_numpy(self._offset[at])
        new_scale, new_offset = refitted(format, self.params, at, (scale, offset), gain)
        kept = new_scale.numpy(), None if new_offset is None else new_offset.numpy()
        self._made.move(left, self._table, self._scale, self._offset, new_scale=kept[0], new_offset=kept[1])
        self._scale[at] = kept[0]
        if self._offset is not None and kept[1] is not None:
            self._offset[at] = kept[1]


def output_loss(
    w: np.ndarray, factors: np.ndarray, grid: Grid, gram: np.ndarray, *, threads: int = 1, isa: str = ""
) -> float | None:
    """tr(e G e^T) for e = v / factors - w, where v are the values of the grid nearest to w * factors.

    w: float32 [rows, cols]; factors: float32 [cols]; gram: G, float32 [cols, cols]. None without a core that can.
    """
    module = core()
    if module is None or not hasattr(module, "grid_loss"):
        return None
    arrays = (np.ascontiguousarray(each, np.float32) for each in (w, factors))
    table, scale, offset = _columns(grid)
    plain = np.ascontiguousarray(gram, np.float32)
    return float(module.grid_loss(*arrays, table, scale, offset, plain, threads=threads, isa=isa))


def _columns(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A grid by columns: its table, and scale and offset float32 [blocks, rows], in new arrays."""
    table, scale = (np.asarray(each) for each in (grid.table, grid.scale))
    offset = None if grid.offset is None else np.array(np.asarray(grid.offset).T, np.float32, order="C")
    return np.ascontiguousarray(table, np.float32), np.array(scale.T, np.float32, order="C"), offset

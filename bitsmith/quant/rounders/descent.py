"""Coordinate descent under a Hessian: sets each code and each scale to its best value while all others stay fixed.

For errors e the slope at column j is r_j = (e H)_j. The best value for column j alone is its present value plus
r_j / H_jj, rounded. Scale and offset move the values of a block along its levels l and along 1, which is least squares
in two unknowns with the block's part of the Hessian. Only steps that lower the error under the damped Hessian are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bitsmith.quant.formats.base import Format, Refittable
from bitsmith.quant.rounders.column_grid import STRIP, ColumnGrid, Slab, column_sum, product
from bitsmith.quant.rounders.hessian import STEP, Factor


def descend(slab: Slab, format: Format, factor: Factor, *, refit: bool) -> None:
    """One sweep over all columns, from left to right. Changes `slab`.

    refit: whether to refit each block's scale and offset before its codes, if the format can store them
    """
    cols, block = factor.cols, slab.column_grid.block
    refits = format if refit and isinstance(format, Refittable) else None
    wide = block > 2 * STEP  # a block as long as a row is refitted before all codes
    if refits is not None and wide:
        refit_blocks(slab, refits, factor, slope_of(slab, factor, 0, cols), 0)
    step = STEP if wide else -(-STEP // block) * block
    for start in range(0, cols, step):
        slope = slope_of(slab, factor, start, min(start + step, cols))
        if refits is not None and not wide:
            refit_blocks(slab, refits, factor, slope, start)
        _recode(slab, factor, slope, start)


def slope_of(slab: Slab, factor: Factor, start: int, stop: int) -> Tensor:
    """(e H)^T of columns start..stop under the damped Hessian: [stop - start, rows]."""
    slope = product(factor.hessian[:, start:stop], slab.error)
    return slope.addcmul_(slab.error[start:stop], factor.added[start:stop, None])


def _recode(slab: Slab, factor: Factor, slope: Tensor, start: int) -> None:
    """Set the codes of the columns that `slope` covers, from `start`, one by one. Overwrites `slope`."""
    h, stop, column_grid = factor.hessian, start + slope.shape[0], slab.column_grid
    assert isinstance(column_grid, ColumnGrid)
    diagonal = (h.diagonal() + factor.added)[start:stop].tolist()
    for left in range(start, stop, STRIP):
        right = min(left + STRIP, stop)
        change = torch.empty((right - left, slope.shape[1]), dtype=slope.dtype, device=slope.device)
        for j in range(left, right):
            error, weights = slab.error[j], slab.weights[j]
            target = (slope[j - start] / diagonal[j - start]).add_(weights).sub_(error)
            level = column_grid.level(j, target)
            slab.levels[j] = level
            new = weights - column_grid.value(j, level)
            torch.sub(new, error, out=change[j - left])
            slab.error[j] = new
            if j + 1 < right:
                slope[j + 1 - start : right - start].addr_(h[j, j + 1 : right], change[j - left])
        if right < stop:
            slope[right - start :].addmm_(h[left:right, right:stop].T, change)


def refit_blocks(slab: Slab, format: Refittable, factor: Factor, slope: Tensor, start: int) -> None:
    """Refit scales and offsets of the blocks that `slope` covers, from `start`. Updates `slope`."""
    block, stop = slab.column_grid.block, start + slope.shape[0]
    for left in range(start, stop, block):
        at = slice(left, left + block)
        here = slice(left - start, left - start + block)
        h = factor.hessian[at, at] + torch.diag(factor.added[at])
        moved = _refit_block(slab, format, left // block, h, slope[here])
        slab.error[at] -= moved
        slope[here] -= product(h, moved)
        if here.stop < slope.shape[0]:  # blocks before this one are finished
            slope[here.stop :] -= product(factor.hessian[at, at.stop : stop], moved)


def _refit_block(slab: Slab, format: Refittable, at: int, h: Tensor, slope: Tensor) -> Tensor:
    """Refit one block; each row keeps the pair with the largest gain. Returns the change of values, [block, rows]."""
    column_grid = slab.column_grid
    levels = slab.levels[at * column_grid.block : (at + 1) * column_grid.block]
    scale = column_grid.scale[at].clone()
    offset = None if column_grid.offset is None else column_grid.offset[at].clone()
    best_scale, best_offset = refitted(format, slab.params, at, (scale, offset), Quadratic.of(levels, slope, h))
    before = levels * scale if offset is None else levels * scale + offset
    column_grid.change(at, best_scale, best_offset)
    after = levels * best_scale if best_offset is None else levels * best_scale + best_offset
    return after - before


def refitted(
    format: Refittable, params: dict[str, Tensor], at: int, now: tuple[Tensor, Tensor | None], gain: Quadratic
) -> tuple[Tensor, Tensor | None]:
    """New scale and offset of block `at`, float32 [rows] each: for each row the pair with the largest gain.

    params: the format's parameters, changed in place
    now: the present scale and offset
    """
    scale, offset = now
    best_scale, best_offset, most = scale, offset, torch.zeros_like(scale)
    for wanted_scale, wanted_offset in _wanted(format, params, at, now, gain):
        found = format.project(params, slice(at, at + 1), wanted_scale[:, None], _column(wanted_offset))
        new_scale, new_offset = found.scale[:, 0], None if found.offset is None else found.offset[:, 0]
        lowered = gain.of_move(new_scale - scale, None if new_offset is None or offset is None else new_offset - offset)
        take = lowered > most
        most = torch.where(take, lowered, most)
        best_scale = torch.where(take, new_scale, best_scale)
        if new_offset is not None and best_offset is not None:
            best_offset = torch.where(take, new_offset, best_offset)
        for name, stored in found.params.items():
            column = params[name][:, at]
            column.copy_(torch.where(take, stored[:, 0], column))
    return best_scale, best_offset


def _column(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[:, None]


def _wanted(
    format: Refittable, params: dict[str, Tensor], at: int, now: tuple[Tensor, Tensor | None], gain: Quadratic
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Candidate scales and offsets: the best pair, then the best scales with a storable ratio of offset to scale."""
    scale, offset = now
    if offset is None:
        yield scale + gain.best_scale(), None
        return
    by_scale, by_offset = gain.best_pair()
    pair = scale + by_scale, offset + by_offset
    yield pair
    stored = format.project(params, slice(at, at + 1), pair[0][:, None], pair[1][:, None])
    assert stored.offset is not None
    for base_scale, base_offset in ((stored.scale[:, 0], stored.offset[:, 0]), (scale, offset)):
        ratio = torch.where(base_scale != 0, base_offset / base_scale, 0.0)
        wanted = gain.best_along(scale, offset, ratio)
        yield wanted, wanted * ratio


@dataclass(frozen=True)
class Quadratic:
    """The gain of each row (fall of its error) if scale and offset of a block move by s and o.

    gain = 2 (s first + o sum) - s^2 square - 2 s o mass - o^2 total, each [rows]
    """

    first: Tensor
    sum: Tensor
    square: Tensor
    mass: Tensor
    total: Tensor

    @classmethod
    def of(cls, levels: Tensor, slope: Tensor, h: Tensor) -> Quadratic:
        """levels, slope: [block, rows]; h: [block, block], damped."""
        steep = product(h, levels)
        return cls(
            first=column_sum(levels * slope),
            sum=column_sum(slope),
            square=column_sum(levels * steep),
            mass=column_sum(steep),
            total=h.double().sum().float(),
        )

    def of_move(self, s: Tensor, o: Tensor | None) -> Tensor:
        """The gain of a move."""
        gain = s * (2.0 * self.first - s * self.square)
        return gain if o is None else gain + o * (2.0 * (self.sum - s * self.mass) - o * self.total)

    def best_scale(self) -> Tensor:
        """The best move of the scale alone."""
        return _ratio(self.first, self.square)

    def best_pair(self) -> tuple[Tensor, Tensor]:
        """The best move of both; of the offset alone if all levels are equal."""
        determinant = self.square * self.total - self.mass * self.mass
        sound = determinant > 1e-5 * self.square * self.total
        s = _ratio(self.total * self.first - self.mass * self.sum, torch.where(sound, determinant, 0.0))
        return s, (self.sum - s * self.mass) / self.total

    def best_along(self, scale: Tensor, offset: Tensor, ratio: Tensor) -> Tensor:
        """The best new scale if the new offset is `ratio` times it, given the present scale and offset."""
        pull = self.first + scale * self.square + offset * self.mass
        pull = pull + ratio * (self.sum + scale * self.mass + offset * self.total)
        return _ratio(pull, self.square + ratio * (2.0 * self.mass + ratio * self.total))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, but 0 if below is not positive."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)

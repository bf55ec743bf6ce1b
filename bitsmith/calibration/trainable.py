"""A trainable quantized matrix: rounding offsets and scales learn through the format's own grid.

Straight-through estimation (Bengio et al. 2013). Forward: every weight is the decoded value of its code, with
parameters in stored precision. Backward: rounding counts as the identity, and weights beyond the table as constants.
Scales thus get the gradient of learned step size quantization (Esser et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakIdKeyDictionary

from bitsmith.calibration.fused import Fused
from bitsmith.quant.formats.base import AnyGrid, Format, IntegerParams, NeedsExtent, Settled, VectorFormat
from bitsmith.quant.formats.precision import stored, to_float32
from bitsmith.quant.grid import Grid
from bitsmith.quant.tensor import QuantTensor
from bitsmith.quant.vector_grid import VECTOR, VectorGrid

_FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Start:
    """The start of learning: a matrix and the codes that a rounder chose for it.

    weight: float32 [rows, cols], before rounding
    tensor: its codes and parameters, numpy arrays
    """

    weight: np.ndarray
    tensor: QuantTensor


class LearnedParams:
    """The parameters of one matrix, with changes that learn. At first they are those of `start`.

    changes: by parameter name, float32 in the stored shape: relative for real numbers, in units of the range for
        integers. Parameters shared by all rows, and integers of unknown range, do not change; none does if `fixed`.
    """

    def __init__(self, tensor: QuantTensor, shape: tuple[int, int], device: str, *, fixed: bool = False) -> None:
        self.format: Format = tensor.format
        self._layout = self.format.params_layout(*shape)
        self._ranges = learned_ranges(self.format, self._layout)
        self._origin = {name: _as_torch(tensor.params[name], name in self._ranges, device) for name in self._layout}
        learned = () if fixed else self._ranges
        self.changes = {name: torch.zeros_like(self._origin[name], dtype=torch.float32) for name in learned}
        for change in self.changes.values():
            change.requires_grad_(True)

    def now(self) -> dict[str, Tensor]:
        """The parameters: learned ones as float32 values that are exact in stored precision, others as stored."""
        return {name: self._param(name, origin) for name, origin in self._origin.items()}

    def frozen(self, codes: Tensor) -> QuantTensor:
        """Codes uint8 [rows, cols] with the present stored parameters, numpy arrays."""
        with torch.no_grad():
            kept = {name: _as_stored(value, self._layout[name][1]) for name, value in self.now().items()}
        if isinstance(self.format, Settled):
            kept = self.format.settled(kept)
        return QuantTensor(self.format, codes.cpu().numpy(), kept)

    def _param(self, name: str, origin: Tensor) -> Tensor:
        if name not in self.changes:
            return origin
        limits, change = self._ranges[name], self.changes[name]
        if limits is None:
            dtype = _FLOATS[self._layout[name][1].name]
            wanted = origin * (1.0 + change)
            largest = torch.finfo(dtype).max
            exact = wanted.detach().clamp(-largest, largest).to(dtype).float()
        else:
            wanted = origin + change * float(limits[1])
            exact = wanted.detach().round().clamp(*limits)
        return straight(wanted, exact)


class TrainableMatrix:
    """Rounding offsets and parameter changes of one matrix. At first they give the codes and parameters of `start`.

    offsets: float32 [rows, cols], added to each weight's place on the grid before rounding; in units of codes
    changes: see `LearnedParams`
    """

    def __init__(self, start: Start, device: str = "cpu") -> None:
        self._params = LearnedParams(start.tensor, start.weight.shape, device)
        self.format, self.changes = self._params.format, self._params.changes
        weight = np.require(start.weight, np.float32, ["C", "W"])  # shared, not copied, where it can be
        self._weight = torch.from_numpy(weight).to(device)
        codes = torch.tensor(np.asarray(start.tensor.codes), device=device)
        with torch.no_grad():
            self.offsets = _first_offsets(self._weight, codes, self._grid())
        self.offsets.requires_grad_(True)

    def values(self) -> Tensor:
        """The decoded matrix, float32 [rows, cols], differentiable in `offsets` and `changes`."""
        grid = self._grid()
        blocks: Tensor = _Decoded.apply(self._weight, self.offsets, grid.scale, grid.offset, grid.table)  # type: ignore[no-untyped-call]
        return blocks

    def frozen(self) -> QuantTensor:
        """The present codes and stored parameters, numpy arrays.

        They decode to `values`, or near them where scales are quantized in turn.
        """
        with torch.no_grad():
            codes = _Place.of(self._weight, self.offsets, self._grid()).codes
        return self._params.frozen(codes)

    def _grid(self) -> Grid:
        grid = self.format.grid(self._params.now())
        assert isinstance(grid, Grid)  # codes of vectors have no offsets, see `ScaledMatrix`
        return grid


class ScaledMatrix:
    """A matrix whose codes stay, and whose parameters learn (EfficientQAT, Chen et al. 2024, section 3.3).

    It serves codes of vectors too, which have no offsets to learn.

    changes: see `LearnedParams`
    """

    def __init__(self, tensor: QuantTensor, device: str = "cpu", *, fixed: bool = False) -> None:
        self._codes = torch.tensor(np.asarray(tensor.codes), device=device)
        rows, cols = self._codes.shape
        cols *= VECTOR if isinstance(tensor.format, VectorFormat) else 1
        self._params = LearnedParams(tensor, (rows, cols), device, fixed=fixed)
        self.format, self.changes = self._params.format, self._params.changes

    def values(self) -> Tensor:
        """The decoded matrix, float32 [rows, cols], differentiable in `changes`."""
        grid = self.format.grid(self._params.now())
        offset = grid.offset if isinstance(grid, Grid) else None
        found: Tensor = _Scaled.apply(self._codes, grid.scale, offset, _levels_of(grid))  # type: ignore[no-untyped-call]
        return found

    def frozen(self) -> QuantTensor:
        """The codes and the present stored parameters; see `TrainableMatrix.frozen`."""
        return self._params.frozen(self._codes)


def _levels_of(grid: AnyGrid) -> Callable[[Tensor], Tensor]:
    """The levels of codes, float32 [rows, cols]."""
    if isinstance(grid, VectorGrid):
        return lambda codes: torch.as_tensor(grid.levels(codes))
    table = grid.table
    if _even(table):
        return lambda codes: codes.float().add_(table[0])
    return lambda codes: table.index_select(0, codes.int().reshape(-1)).reshape(codes.shape)


def straight(wanted: Tensor, exact: Tensor) -> Tensor:
    """The rounded values `exact`, with the gradient of `wanted`."""
    found: Tensor = _Straight.apply(wanted, exact)  # type: ignore[no-untyped-call]
    return found


def learned_ranges(
    format: Format, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> dict[str, tuple[int, int] | None]:
    """The parameters of a format that learning may change: None for real numbers, (least, greatest) for integers."""
    if isinstance(format, NeedsExtent):
        return {}  # one value for all rows
    integers = format.integer_ranges if isinstance(format, IntegerParams) else {}
    return {
        name: integers.get(name) for name, (_, dtype) in layout.items() if dtype.name in _FLOATS or name in integers
    }


def _as_torch(values: np.ndarray, learned: bool, device: str) -> Tensor:
    """A parameter as a tensor: float32 if it is learned or bfloat16, else its own dtype."""
    plain = values if values.dtype.kind in "iu" and not learned else to_float32(values)
    return torch.tensor(plain, device=device)


def _as_stored(values: Tensor, dtype: np.dtype) -> np.ndarray:
    plain = values.detach().cpu().numpy()
    return plain.astype(dtype) if dtype.kind in "iu" else np.asarray(stored(plain.astype(np.float32), dtype))


@dataclass(frozen=True)
class _Place:
    """Where weights lie on a grid.

    codes: uint8 [rows, cols]
    levels: the table's entries at the codes, float32 [rows, cols]
    unit: (weight - offset) / scale, in units of the table; float32 [rows, cols]
    gap: distance of the two entries around it; None if it is one everywhere
    inside: whether the shifted weight lies between the ends of the table
    """

    codes: Tensor
    levels: Tensor
    unit: Tensor
    gap: Tensor | None
    inside: Tensor

    @classmethod
    def of(cls, weight: Tensor, offsets: Tensor, grid: Grid) -> _Place:
        """Weights and offsets: float32 [rows, cols]. Ties go to the lower code, as in `Grid.nearest`."""
        index, unit, gap = _index(weight, grid)
        index += offsets
        top = grid.table.shape[0] - 1
        codes = (index - 0.5).ceil_().clamp_(0, top)
        inside = (index >= -0.5) & (index <= top + 0.5)
        levels = codes + grid.table[0] if gap is None else grid.table[codes.long()]
        return cls(codes.to(torch.uint8), levels, unit, gap, inside)


def _index(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """The place of each weight counted in codes, with fractions; `unit` and `gap` as in `_Place`."""
    blocks = _by_block(weight, grid.scale)
    if grid.offset is not None:
        blocks = blocks - grid.offset[:, :, None]
    divisor = torch.where(grid.scale != 0, grid.scale, torch.inf)
    unit = (blocks / divisor[:, :, None]).reshape(weight.shape)
    if _even(grid.table):
        return unit - grid.table[0], unit, None
    gaps = grid.table.diff()
    low = (torch.bucketize(unit, grid.table) - 1).clamp_(0, gaps.shape[0] - 1)
    gap = gaps[low]
    return low + (unit - grid.table[low]) / gap.clamp(min=1e-9), unit, gap


_EVEN = WeakIdKeyDictionary()  # answers on tables of an accelerator, which stay: to ask waits for the device


def _even(table: Tensor) -> bool:
    """Whether all entries of a table lie one apart."""
    known: bool | None = _EVEN.get(table)  # type: ignore[no-untyped-call]
    if known is None:
        known = bool((table.diff() == 1.0).all())
        if table.device.type != "cpu":
            _EVEN[table] = known
    return known


def _by_block(x: Tensor, scale: Tensor) -> Tensor:
    """[rows, cols] -> [rows, blocks, block]."""
    return x.reshape(x.shape[0], scale.shape[1], -1)


def _first_offsets(weight: Tensor, codes: Tensor, grid: Grid) -> Tensor:
    """Offsets that give `codes`: zero if the code is the nearest, else enough to enter the cell of the wanted code.

    The weight is mirrored at the cell's border: it lies as deep inside the cell as it lay outside, but at most in the
    middle. Learning can then easily reverse choices that were close.
    """
    index, _, _ = _index(weight, grid)
    index.clamp_(0, grid.table.shape[0] - 1)
    away = codes - index
    depth = (away.abs() - 0.5).clamp_(0.001, 0.5)
    shifted = codes - away.sign() * (0.5 - depth)
    near = _Place.of(weight, torch.zeros_like(weight), grid).codes == codes
    return torch.where(near, 0.0, shifted - _index(weight, grid)[0])


class _Decoded(torch.autograd.Function):
    """Weights rounded on a grid: differentiable in the offsets, the scale and the grid's offset."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, offsets: Tensor, scale: Tensor, base: Tensor | None, table: Tensor) -> Tensor:
        ctx.fused = fused = Fused.of(weight, offsets, scale, base, table)
        if fused is not None:
            return fused.values()
        grid = Grid(table, scale, base, 0)
        place = _Place.of(weight, offsets, grid)
        ctx.save_for_backward(place.levels, place.unit, place.inside, place.gap, scale)
        ctx.shifts = base is not None
        blocks = _by_block(place.levels, scale) * scale[:, :, None]
        if base is not None:
            blocks = blocks + base[:, :, None]
        return blocks.reshape(weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.fused is not None:
            to_offsets, to_scale, to_base = ctx.fused.gradients(gradient)
            return None, to_offsets, to_scale, to_base, None
        levels, unit, within, gap, scale = ctx.saved_tensors
        inside = gradient * within
        step = inside if gap is None else inside * gap
        offsets = (_by_block(step, scale) * scale[:, :, None]).reshape(gradient.shape)
        to_scale = _by_block(gradient * levels - inside * unit, scale).sum(2)
        to_base = _by_block(gradient - inside, scale).sum(2) if ctx.shifts else None
        return None, offsets, to_scale, to_base, None


class _Scaled(torch.autograd.Function):
    """Fixed codes on a grid: differentiable in the scale and the grid's offset. Only the codes are kept."""

    @staticmethod
    def forward(
        ctx: Any, codes: Tensor, scale: Tensor, base: Tensor | None, levels: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.shifts, ctx.levels = base is not None, levels
        blocks = _by_block(levels(codes), scale) * scale[:, :, None]
        if base is not None:
            blocks = blocks + base[:, :, None]
        return blocks.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale = ctx.saved_tensors
        to_scale = _by_block(gradient * ctx.levels(codes), scale).sum(2)
        return None, to_scale, _by_block(gradient, scale).sum(2) if ctx.shifts else None, None


class _Straight(torch.autograd.Function):
    """Forward: the rounded value. Backward: the identity."""

    @staticmethod
    def forward(ctx: Any, wanted: Tensor, exact: Tensor) -> Tensor:
        return exact

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None

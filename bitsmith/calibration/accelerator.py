"""What an accelerator holds while it calibrates block by block, and how much of it is free.

Sizes are those of what is alive together in each phase of a group of linears. They choose how many rows are rounded
together, and whether the next block's weights may lie on the device ahead of time; `bitsmith plan` shows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsmith.calibration.pieces import BATCH_TOKENS
from bitsmith.models.arch.block import linear_groups, linear_shapes
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.operations.base import LinearGroup

if TYPE_CHECKING:
    import torch

    from bitsmith.quant.rounders.hessian import Factor

_FLOATS = 4  # bytes
MOST_ROWS = 16384  # more rows at once gain nothing
_LEAST_ROWS = 256
_EVEN = 16
_COPIES = 8  # of the rows being rounded: weights in both layouts, levels, errors, values, codes, and what products take
_KERNELS = 700_000_000  # bytes of CUDA's context, kernels, cuBLAS' workspace and fragments
_USED = 0.9  # share of the free memory that rows take; the rest is for fragments


@dataclass(frozen=True)
class Phase:
    """What is alive together. nbytes: bytes on the device"""

    name: str
    nbytes: int


@dataclass(frozen=True)
class DevicePlan:
    """Calibrating on one accelerator.

    phases: with as few rows at a time as are useful
    rows: rows of the widest group that are rounded together, within the room
    ahead: bytes of the next block's weights, if they may lie on the device ahead of time; 0 if they wait in the host's
        memory
    """

    room: int
    phases: tuple[Phase, ...]
    rows: int
    ahead: int

    @property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.nbytes)

    @property
    def fits(self) -> bool:
        """Whether all phases fit the room."""
        return self.peak.nbytes <= self.room


def device_plan(config: ModelConfig, room: int, *, follows: bool = True, context: int = 512) -> DevicePlan:
    """What GPTQ takes on a device.

    room: bytes that a program can take there
    follows: whether the original's hidden states are followed too, see `rounders.Rounder.follows_original`
    """
    block = max(_block_bytes(config, layer) for layer in range(config.layers))
    phases = dict[str, Phase]()
    rows = MOST_ROWS
    for layer in {config.specs[layer]: layer for layer in range(config.layers)}.values():
        for group in linear_groups(config, layer):
            for phase in _phases(config, layer, group, 2 * block, follows=follows, context=context):
                before = phases.get(phase.name)
                if before is None or before.nbytes < phase.nbytes:
                    phases[phase.name] = phase
            cols = linear_shapes(config, layer)[group.linears[0]][1]
            held = _KERNELS + 2 * block + (2 + follows) * _FLOATS * cols * cols
            rows = min(rows, rows_within(room - held, cols))
    found = tuple(phases.values())
    left = room - max(phase.nbytes for phase in found)
    return DevicePlan(room, found, rows, block if block <= left else 0)


def _block_bytes(config: ModelConfig, layer: int) -> int:
    return _FLOATS * sum(rows * cols for rows, cols in linear_shapes(config, layer).values())


def _phases(
    config: ModelConfig, layer: int, group: LinearGroup, blocks: int, *, follows: bool, context: int
) -> Iterator[Phase]:
    """The phases of one group. blocks: bytes of the original block and the rounded one"""
    shapes = linear_shapes(config, layer)
    rows, cols = max(shapes[name][0] for name in group.linears), shapes[group.linears[0]][1]
    gram = _FLOATS * cols * cols
    own, drift = gram, gram * follows
    held = _KERNELS + blocks
    widest = max(max(shape) for shape in shapes.values())
    batch = _FLOATS * max(BATCH_TOKENS, context) * (4 * widest + 6 * config.hidden)
    what = f"inputs of {group.name}"
    yield Phase(f"statistics of the {what}", held + own + drift + batch)
    yield Phase(f"order of columns of the {what}", held + own + drift + 2 * gram)  # what is left, and what comes next
    yield Phase(f"factor of the {what}", held + own + drift + gram)
    if follows and rows > cols:
        yield Phase(f"correction for the {what}", held + own + drift + gram + 3 * gram)
    moves = gram if follows and rows > cols else 0
    slab = _COPIES * _FLOATS * min(rows, _LEAST_ROWS) * cols
    whole = 3 * _FLOATS * rows * cols if follows else 0  # the corrected matrix
    yield Phase(f"rounding on the {what}", held + own + drift + gram + moves + whole + slab)


def rows_within(room: int, cols: int) -> int:
    """Rows of `cols` columns that are rounded together in so many bytes."""
    fit = int(_USED * max(room, 0)) // (_COPIES * _FLOATS * cols)
    return min(MOST_ROWS, max(_LEAST_ROWS, fit // _EVEN * _EVEN))


def accelerated_rows(factor: Factor) -> int:
    """Rows that are rounded together under a Hessian on an accelerator, by what is free there now."""
    return rows_within(free_memory(factor.hessian.device), factor.cols)


def free_memory(device: torch.device) -> int:
    """Bytes that torch can still take on a device: those that nobody has, and those that it keeps for itself."""
    import torch

    if device.type != "cuda":
        return 1 << 62
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def has_room(device: torch.device, nbytes: int) -> bool:
    """Whether the next block, of so many bytes, may lie on a device while the present one is calibrated.

    By then two blocks may lie there; a half of the rest is for Hessians and rows.
    """
    return 2 * nbytes < free_memory(device) // 2


def release(device: torch.device) -> None:
    """Give memory that torch keeps for itself back to the device, before something is tried again."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()

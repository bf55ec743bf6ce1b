"""How much of an accelerator's memory is free, and how many rows may be rounded together within it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bitsmith.quant.rounders.hessian import Factor

_FLOATS = 4  # bytes
MOST_ROWS = 16384  # more rows at once gain nothing
LEAST_ROWS = 256
_EVEN = 16
COPIES = 8  # of the rows being rounded: weights in both layouts, levels, errors, values, codes, and what products take
_USED = 0.9  # share of the free memory that rows take; the rest is for fragments


def rows_within(room: int, cols: int) -> int:
    """Rows of `cols` columns that are rounded together in so many bytes."""
    fit = int(_USED * max(room, 0)) // (COPIES * _FLOATS * cols)
    return min(MOST_ROWS, max(LEAST_ROWS, fit // _EVEN * _EVEN))


def accelerated_rows(factor: Factor) -> int:
    """Rows that are rounded together under a Hessian on an accelerator, by what is free there now."""
    return rows_within(free_memory(factor.hessian.device), factor.cols)


def on_accelerator(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies on another device than the CPU."""
    return tensor.device.type != "cpu"


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

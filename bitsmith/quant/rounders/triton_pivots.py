"""The order with pivots on an accelerator, see `hessian._pivoted`: a launch a column, and no wait for the host.

A launch reads which column has the smallest pivot from what the launch before it left, computes that column of the
factor, and leaves the smallest pivots of its own parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitsmith.quant.rounders.hessian import STEP

_WIDTH = 256  # columns of a program
_DEPTH = 16  # earlier columns of the factor that are read together
_NOWHERE = tl.constexpr(2147483647)


@triton.jit  # type: ignore[untyped-decorator]
def _pivot(  # type: ignore[no-untyped-def]
    rest,
    panel,
    diagonal,
    smallest,
    places,
    chosen,
    failed,
    step,
    size,
    least,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Choose the column with the smallest pivot, and compute its row of the panel.

    rest: [size, size]; panel: [STEP, size]; diagonal: [size]; chosen: int32 [STEP]; failed: int32 [1]
    smallest, places: [2, PARTS]: smallest pivots of the parts, and their columns, before and after this step
    """
    part = tl.program_id(0)
    every = tl.arange(0, PARTS)
    before, after = (step % 2) * PARTS, ((step + 1) % 2) * PARTS
    values = tl.load(smallest + before + every)
    pivot = tl.min(values, axis=0)
    j = tl.min(tl.where(values == pivot, tl.load(places + before + every), _NOWHERE), axis=0)
    j = tl.minimum(j, size - 1)
    if part == 0:
        tl.store(chosen + step, j)
        tl.store(failed, 1, mask=(pivot > least) == 0)
    column = part * WIDTH + tl.arange(0, WIDTH)
    inside = column < size
    found = tl.load(rest + j.to(tl.int64) * size + column, mask=inside, other=0.0)
    for start in range(0, step, DEPTH):
        earlier = start + tl.arange(0, DEPTH)
        own = tl.load(panel + earlier * size + j, mask=earlier < step, other=0.0)
        line = earlier[:, None] * size + column[None, :]
        those = tl.load(panel + line, mask=(earlier < step)[:, None] & inside[None, :], other=0.0)
        found -= tl.sum(own[:, None] * those, axis=0)
    root = tl.math.sqrt_rn(tl.maximum(pivot, least))
    found = tl.math.div_rn(found, tl.zeros([WIDTH], tl.float32) + root)
    tl.store(panel + step * size + column, found, mask=inside)
    left = tl.load(diagonal + column, mask=inside, other=float("inf")) - found * found
    left = tl.where(column == j, float("inf"), left)
    tl.store(diagonal + column, left, mask=inside)
    least_left = tl.min(left, axis=0)
    tl.store(smallest + after + part, least_left)
    tl.store(places + after + part, tl.min(tl.where(left == least_left, column, _NOWHERE), axis=0))


def pivoted(h: Tensor, ridge: Tensor, least: float) -> Tensor | None:
    """The order of a Hessian's columns, int64 [cols]; None if a pivot is not larger than `least`.

    h: float32 [cols, cols]; ridge: [cols], added to its diagonal
    """
    rest = h + torch.diag(ridge)
    device = h.device
    places = torch.arange(h.shape[0], device=device)  # original columns of the rows and columns of `rest`
    failed = torch.zeros(1, dtype=torch.int32, device=device)
    found: list[Tensor] = []
    while size := places.numel():
        steps, programs = min(STEP, size), -(-size // _WIDTH)
        diagonal = rest.diagonal().clone()
        panel = torch.empty((steps, size), device=device)
        chosen = torch.empty(steps, dtype=torch.int32, device=device)
        parts = 1 << (programs - 1).bit_length()
        smallest = torch.full((2, parts), torch.inf, device=device)
        own = torch.zeros((2, parts), dtype=torch.int32, device=device)
        value, place = diagonal.min(dim=0)
        smallest[0, 0], own[0, 0] = value, place
        arrays = rest, panel, diagonal, smallest, own, chosen, failed
        for step in range(steps):
            _pivot[(programs,)](*arrays, step, size, least, PARTS=parts, WIDTH=_WIDTH, DEPTH=_DEPTH)
        if int(failed):
            return None
        found.append(places[chosen.long()])
        left = torch.isfinite(diagonal).nonzero()[:, 0]
        places = places[left]
        panel = panel[:, left]
        rest = rest[left[:, None], left[None, :]].addmm_(panel.T, panel, alpha=-1.0)
    return torch.cat(found).flip(0)

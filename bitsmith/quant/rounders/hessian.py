"""The Hessian of a linear's output error, factored once for all linears that share an input.

For inputs x, a row's rounding error e causes the squared output error e H e^T, with H = mean of x^T x. With
H = U D U^T, U unit upper triangular, this is the sum of D_j (e_j + sum_{i<j} e_i U_ij)^2. So column j should be rounded
to the value nearest to its weight plus the feedback from the columns before it. This is GPTQ (Frantar et al. 2022) as
LDLQ (Chee et al. 2023, QuIP, theorem 6). It gives the same codes as the Cholesky factor of the inverse, without an
inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import TensorError
from bitsmith.quant.grid import Array
from bitsmith.quant.rounders.damping import DAMPING, MOST_DAMPING
from bitsmith.quant.vector_grid import VECTOR
from bitsmith.system.accelerators import runs_triton
from bitsmith.system.core import core

Order = Literal["natural", "activation", "pivoted", "vectors"]

STEP = 128  # columns processed together; products are summed over this many at a time, in a fixed order
_SOLVED_ROWS = 512  # rows that are solved at a time


@dataclass(frozen=True)
class Factor:
    """A Hessian and its factor, all on one device and in float32.

    hessian: [cols, cols], symmetric, as given, in the columns' own order
    feedback: [cols, cols], U above its diagonal, in the order of rounding; ignore the other entries
    pivots: [cols], D of the damped Hessian, in the order of rounding
    order: [cols] int64, the column that is rounded first, second, ...
    added: [cols], added to the diagonal by damping; dead columns, whose input was always zero, get the diagonal's mean
    damping: the share of the diagonal's mean that was added
    raised: whether it is larger than requested, because that was not enough
    natural: whether columns are rounded from left to right
    dead: number of dead columns
    """

    hessian: Tensor
    feedback: Tensor
    pivots: Tensor
    order: Tensor
    added: Tensor
    damping: float
    raised: bool
    natural: bool
    dead: int

    @property
    def cols(self) -> int:
        """Number of columns of the linears."""
        return self.hessian.shape[0]

    @property
    def diagonal(self) -> Tensor:
        """Mean squared input per column, [cols]: the importance for fitting scales of nearest rounding."""
        return self.hessian.diagonal().contiguous()

    @property
    def importance(self) -> Tensor:
        """Cost of a column's rounding error if later columns compensate it: D by column, [cols].

        The importance for fitting GPTQ's scales; it is better there than the diagonal.
        """
        by_column = torch.empty_like(self.pivots)
        by_column[self.order] = self.pivots
        return by_column


def prepare(hessian: Array, *, order: Order = "pivoted", damping: float = DAMPING) -> Factor:
    """Factor a Hessian: the mean or sum of x^T x, [cols, cols], numpy or torch; its scale does not matter.

    order: "activation" rounds the columns with the largest diagonal first. "pivoted" chooses from the last to the
        first, each time the column with the smallest pivot; it costs a second factorisation and gains 1 to 4 % over
        "activation", 20 % if the Hessian is nearly singular. "vectors" is that order by vectors of eight columns
    damping: share of the diagonal's mean that is added to the diagonal; multiplied by ten until the matrix is positive
        definite, tried each time in float32 and then in float64

    The result keeps `hessian` and takes the same memory again. Bytes do not depend on the number of threads.
    Raises TensorError for a matrix that is not square, holds NaN or Inf or a negative diagonal, or cannot be made
    positive definite.
    """
    h = _checked(hessian)
    diagonal = h.diagonal()
    living = diagonal[diagonal > 0]
    mean = float(living.double().mean()) if living.numel() else 1.0
    dead = diagonal.numel() - living.numel()
    share = damping
    while True:
        added = torch.where(diagonal > 0, share * mean, mean)
        columns = _ORDERS[order](h, added)
        for dtype in (torch.float32, torch.float64):
            factored = _factored(h, columns, added, dtype)
            if factored is not None:
                feedback, pivots = (part.float() for part in factored)
                return Factor(h, feedback, pivots, columns, added, share, share > damping, order == "natural", dead)
        if share >= MOST_DAMPING:
            raise TensorError(
                f"the Hessian of {h.shape[0]} columns is not positive definite even with {share:g} of its diagonal's "
                "mean added; it is not a sum of x^T x. Calibrate again, or round without it (--method=nearest)."
            )
        share = min(max(share, 1e-4) * 10.0, MOST_DAMPING)


def _checked(hessian: Array) -> Tensor:
    h = torch.as_tensor(np.asarray(hessian) if not isinstance(hessian, Tensor) else hessian).float()
    if h.ndim != 2 or h.shape[0] != h.shape[1] or h.shape[0] == 0:
        raise TensorError(f"a Hessian must be square, [cols, cols]; found {list(h.shape)}. Give the gram X^T X.")
    if not math.isfinite(float(h.sum())) or bool((h.diagonal() < 0).any()):
        raise TensorError(
            f"the Hessian of {h.shape[0]} columns holds NaN, infinite or negative diagonal values, because hidden "
            "states overflowed. Calibrate again, with other text."
        )
    return h


def _natural(h: Tensor, added: Tensor) -> Tensor:
    return torch.arange(h.shape[0], device=h.device)


def _by_activation(h: Tensor, added: Tensor) -> Tensor:
    return torch.argsort(h.diagonal(), descending=True, stable=True)


def _pivoted(h: Tensor, added: Tensor) -> Tensor:
    """The order of a Cholesky factorisation with the smallest pivot first; its first pivot is rounded last.

    In any order, the product of all D is the determinant. Their sum, which is the cost of rounding, is smallest if
    they are similar. Small pivots first keep the large ones, which come last, from growing. At least 1 % damping is
    used, because smaller pivots are inexact in float32. If the matrix is still not positive definite, the result is
    the order by activation.
    """
    mean = float(h.diagonal().mean())
    ridge = added.clamp(min=0.01 * mean)
    module = core()
    if h.device.type == "cpu" and module is not None and hasattr(module, "pivoted_order"):
        order = np.empty(h.shape[0], np.int64)
        parts = (np.ascontiguousarray(part.numpy(), np.float32) for part in (h, ridge))
        found = module.pivoted_order(*parts, least=1e-4 * mean, order=order, threads=torch.get_num_threads())
        return torch.from_numpy(order) if found else _by_activation(h, added)
    if runs_triton(h.device):
        from bitsmith.quant.rounders.triton_pivots import pivoted

        own = pivoted(h, ridge, 1e-4 * mean)
        return _by_activation(h, added) if own is None else own
    return _pivoted_by_torch(h, added, ridge, mean)


def _pivoted_by_torch(h: Tensor, added: Tensor, ridge: Tensor, mean: float) -> Tensor:
    """`_pivoted` without the core, on any device: the definition. ridge: what is added to the diagonal"""
    rest = h + torch.diag(ridge)
    places = torch.arange(h.shape[0], device=h.device)  # original columns of the rows and columns of `rest`
    found: list[Tensor] = []
    while places.numel():
        diagonal = rest.diagonal().clone()
        steps = min(STEP, places.numel())
        panel = torch.empty((steps, places.numel()), dtype=rest.dtype, device=rest.device)
        chosen: list[int] = []
        for i in range(steps):
            j = int(diagonal.argmin())
            pivot = float(diagonal[j])
            if not pivot > 1e-4 * mean:
                return _by_activation(h, added)
            column = torch.addmv(rest[j], panel[:i].T, panel[:i, j], alpha=-1.0) if i else rest[j]
            panel[i] = column / pivot**0.5
            diagonal -= panel[i].square()
            chosen.append(j)
            diagonal[chosen] = torch.inf
        found.append(places[chosen])
        left = torch.isfinite(diagonal).nonzero()[:, 0]
        places = places[left]
        rest = rest[left[:, None], left[None, :]].addmm_(panel[:, left].T, panel[:, left], alpha=-1.0)
    return torch.cat(found).flip(0)


def _by_vectors(h: Tensor, added: Tensor) -> Tensor:
    """Vectors of eight columns together, by the mean place of their columns in the order with pivots."""
    places = torch.empty(h.shape[0], dtype=torch.float64, device=h.device)
    places[_pivoted(h, added)] = torch.arange(h.shape[0], dtype=torch.float64, device=h.device)
    vectors = torch.argsort(places.reshape(-1, VECTOR).mean(dim=1), stable=True)
    columns: Tensor = (vectors[:, None] * VECTOR + torch.arange(VECTOR, device=h.device)).flatten()
    return columns


_ORDERS = {"natural": _natural, "activation": _by_activation, "pivoted": _pivoted, "vectors": _by_vectors}


def _factored(h: Tensor, order: Tensor, added: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """U and D of h with `added` on its diagonal, in the given order; None if it is not positive definite.

    A blocked right-looking factorisation from the last column to the first, in place. The diagonal blocks are
    factored and inverted in float64.
    """
    cols = h.shape[0]
    u = h[order[:, None], order[None, :]].to(dtype)
    u.diagonal().add_(added[order].to(dtype))
    pivots = torch.empty(cols, dtype=dtype, device=h.device)
    for start in range((cols - 1) // STEP * STEP, -1, -STEP):
        stop = min(start + STEP, cols)
        root = _upper_root(u[start:stop, start:stop].double())
        if root is None:
            return None
        identity = torch.eye(stop - start, dtype=torch.float64, device=h.device)
        inverse = torch.linalg.solve_triangular(root, identity, upper=True).to(dtype)
        roots = root.diagonal().to(dtype)
        above = u[:start, start:stop] @ inverse.T
        for left in range(0, start, 4 * STEP):  # the upper triangle only, in wide strips
            right = min(left + 4 * STEP, start)
            u[:right, left:right] -= above[:right] @ above[left:right].T
        u[:start, start:stop] = above / roots
        u[start:stop, start:stop] = root.to(dtype) / roots
        pivots[start:stop] = roots * roots
    return (u, pivots) if bool(torch.isfinite(pivots).all()) else None


def _upper_root(block: Tensor) -> Tensor | None:
    """R, upper triangular, with R R^T = block; None if the block is not positive definite."""
    symmetric = torch.triu(block) + torch.triu(block, 1).T
    lower, failed = torch.linalg.cholesky_ex(symmetric.flip(0, 1))
    if int(failed) != 0 or not bool((lower.diagonal() > 0).all()):
        return None
    root: Tensor = lower.flip(0, 1).contiguous()
    return root


def correction(factor: Factor, drift: Array) -> Tensor:
    """Correction of weights for inputs that earlier rounding has changed: M, float32 [cols, cols], see `corrected`.

    drift: mean of (x - x')^T x', [cols, cols], in the units of the Hessian: x are this linear's inputs in the original
        model, x' those in the rounded model, which also give the Hessian

    The outputs of weights w + w M for x' are nearest to the outputs of w for x: |w x - v x'|^2 is smallest for
    v = w + w (x - x')^T x' (x'^T x')^-1. Rounding v then adds e H e^T as usual. This is the asymmetric calibration of
    Li et al. 2025 (GPTAQ), but solved at once instead of column by column, so that every rounder can use it. The
    Hessian is damped. Raises TensorError if `drift` has another shape or is not finite.
    """
    given = torch.as_tensor(drift, device=factor.hessian.device).float()
    if given.shape != factor.hessian.shape or not math.isfinite(float(given.abs().sum())):
        raise TensorError(
            f"the drift of inputs must be finite, with the Hessian's shape {list(factor.hessian.shape)}; found shape "
            f"{list(given.shape)}. Calibrate again."
        )
    return solved(factor, given)


def solved(factor: Factor, given: Tensor) -> Tensor:
    """given H^-1 of the damped Hessian: float32 [n, cols] -> [n, cols]."""
    u = factor.feedback  # the solvers read nothing but what lies above its diagonal
    solved = torch.linalg.solve_triangular(u.T, given[:, factor.order], upper=False, left=False, unitriangular=True)
    solved /= factor.pivots
    solved = torch.linalg.solve_triangular(u, solved, upper=True, left=False, unitriangular=True)
    by_column = torch.empty_like(solved)
    by_column[:, factor.order] = solved
    return by_column


def corrected_directly(rows: Tensor, factor: Factor, drift: Tensor) -> Tensor:
    """`corrected` without M: w + (w drift) H^-1, float32 [rows, cols]. It takes no memory of M's size.

    Sums are taken in another order. It is less work where a matrix has fewer rows than columns. drift: see `correction`
    """
    moved: Tensor = solved(factor, rows @ drift)
    return moved.add_(rows)


def drifted(w: Tensor, drift: Tensor) -> Tensor:
    """w D of a drift D, see `correction`: float32 [rows, cols]. Sums have a fixed order, STEP columns at a time.

    Raises TensorError if D is not finite.
    """
    out = torch.zeros_like(w)
    for start in range(0, w.shape[1], STEP):
        strip = drift[start : start + STEP]
        if not math.isfinite(float(strip.abs().sum())):
            raise TensorError("the drift of inputs must be finite. Calibrate again.")
        out.addmm_(w[:, start : start + STEP], strip)
    return out


def solve_in_place(factor: Factor, given: Tensor) -> Tensor:
    """given H^-1 of the damped Hessian in the place of `given`, float32 [n, cols], which is returned.

    As `solved`, but in slabs of rows and steps of columns, so that nothing of the size of `given` is made beside it.
    """
    u, cols = factor.feedback, factor.cols
    starts = range(0, cols, STEP)
    for first in range(0, given.shape[0], _SOLVED_ROWS):
        rows = given[first : first + _SOLVED_ROWS]
        x = rows[:, factor.order]
        for start in reversed(starts):
            stop = min(start + STEP, cols)
            own = x[:, start:stop]
            own.copy_(_small_solve(u[start:stop, start:stop].T, own, upper=False))
            x[:, :start].addmm_(own, u[:start, start:stop].T, alpha=-1.0)
        x /= factor.pivots
        for start in starts:
            stop = min(start + STEP, cols)
            own = x[:, start:stop]
            own.copy_(_small_solve(u[start:stop, start:stop], own, upper=True))
            x[:, stop:].addmm_(own, u[start:stop, stop:], alpha=-1.0)
        rows[:, factor.order] = x
    return given


def _small_solve(triangle: Tensor, given: Tensor, *, upper: bool) -> Tensor:
    """given T^-1 for a triangular T with ones on its diagonal, [STEP, STEP] at most."""
    solved: Tensor = torch.linalg.solve_triangular(triangle, given, upper=upper, left=False, unitriangular=True)
    return solved


def corrected(w: Array, moves: Tensor) -> Array:
    """w + w M: float32 [rows, cols], numpy or torch, and M of `correction` -> the same kind as `w`."""
    rows = torch.as_tensor(w, device=moves.device)
    out = rows.clone()
    for start in range(0, rows.shape[1], STEP):
        out.addmm_(rows[:, start : start + STEP], moves[start : start + STEP])
    return out if isinstance(w, Tensor) else out.numpy()

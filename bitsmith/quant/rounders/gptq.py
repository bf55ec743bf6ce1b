"""GPTQ for every format: scales first, then codes column by column. Each column compensates earlier errors.

Frantar et al. 2022 (GPTQ), in the form of Chee et al. 2023 (QuIP): see `hessian`. Scales are fitted before any code is
chosen ("static groups"), so columns may be rounded in any order and files need no `g_idx`. Then coordinate descent
under the same Hessian improves codes and scales, see `descent` (codes alone: Behdin et al. 2023, QuantEase). We also
measured scales that are fitted during the pass ("dynamic groups"). They were not better than static groups that are
fitted with D as importance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import TensorError
from bitsmith.quant.formats.base import Format, Params, VectorFormat
from bitsmith.quant.formats.code_books import CodeBookFormat
from bitsmith.quant.formats.core_ladder import fitted
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.formats.search import usable
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.rounders import vectors
from bitsmith.quant.rounders.column_grid import STRIP, ColumnGrid, Slab, output_error, product
from bitsmith.quant.rounders.core_slab import CoreSlab
from bitsmith.quant.rounders.damping import DAMPING
from bitsmith.quant.rounders.descent import descend
from bitsmith.quant.rounders.hessian import STEP, Factor, Order, prepare
from bitsmith.quant.rounders.slabs import slab_rows
from bitsmith.quant.rounders.triton_slab import TritonSlab

EVEN_ROWS = 16  # slabs are padded to a multiple; products with fewer rows are summed in another order
SWEEPS = 3


@dataclass(frozen=True)
class GptqReport:
    """Report on rounding some rows. Errors are sums of e H e^T in the units of the Hessian, without damping.

    rows: number of rows
    error: error of the returned codes
    nearest: error of the nearest codes with weighted scales
    kept: number of rows that kept the nearest codes because GPTQ's were worse
    damping, raised: see `Factor`
    dead: number of columns without input
    """

    rows: int
    error: float
    nearest: float
    kept: int
    damping: float
    raised: bool
    dead: int


@dataclass(frozen=True)
class Rounded:
    """Codes uint8 [rows, cols] and stored parameters, as the weights' kind of array, and a report."""

    codes: Array
    params: Params
    report: GptqReport


def gptq(
    w: Array,
    format: Format,
    hessian: Array,
    *,
    order: Order = "pivoted",
    damping: float = DAMPING,
    sweeps: int = SWEEPS,
    refit: bool = True,
) -> Rounded:
    """Round `w`, float32 [rows, cols], with a small error of the outputs: `prepare`, then `gptq_rows` per slab."""
    order = "vectors" if isinstance(format, VectorFormat) else order
    factor = prepare(hessian, order=order, damping=damping)
    step = slab_rows(w.shape[1])
    slabs = [
        gptq_rows(w[start : start + step], format, factor, sweeps=sweeps, refit=refit)
        for start in range(0, max(1, w.shape[0]), step)
    ]
    join = torch.cat if isinstance(w, Tensor) else np.concatenate
    params = {name: join([slab.params[name] for slab in slabs]) for name in slabs[0].params}
    return Rounded(join([slab.codes for slab in slabs]), params, joined(slab.report for slab in slabs))


def gptq_rows(w: Array, format: Format, factor: Factor, *, sweeps: int = SWEEPS, refit: bool = True) -> Rounded:
    """Round some rows of a matrix, float32 [rows, cols], numpy or torch. All rows use the same factor.

    sweeps: rounds of coordinate descent after GPTQ's pass; 0 is GPTQ as published
    refit: whether these rounds also refit scales and offsets to the codes, if the format can store them

    A row keeps the nearest codes, with scales weighted by the Hessian's diagonal, if GPTQ's codes are worse. Rows do
    not influence each other, and sums have a fixed order. So neither the size of slabs nor the number of threads
    changes the codes, if the linear algebra library sums 128 products in one order for any multiple of 16 rows (MKL
    does).
    Raises TensorError if `w` is not finite or does not fit the Hessian.
    """
    return gptq_each([w], format, factor, sweeps=sweeps, refit=refit)[0]


def gptq_each(
    matrices: Sequence[Array], format: Format, factor: Factor, *, sweeps: int = SWEEPS, refit: bool = True
) -> list[Rounded]:
    """Round some rows of several matrices that share an input, all rows at once; see `gptq_rows`."""
    every = [_on_device(w, factor) for w in matrices]
    rows = every[0] if len(every) == 1 else torch.cat(every)
    slab = None if isinstance(format, VectorFormat) else CoreSlab.of(rows, factor) or TritonSlab.of(rows, factor)
    if slab is not None:
        plain, tried = _by_slab(rows, slab, format, factor, _Sweeps(sweeps, refit))
    else:
        plain, tried = _by_torch(_even(rows), format, factor, _Sweeps(sweeps, refit))
    better = tried.error < plain.error
    chosen = _Attempt(
        torch.where(better[:, None], tried.codes, plain.codes),
        {name: torch.where(better[:, None], tried.params[name], p) for name, p in plain.params.items()},
        torch.minimum(tried.error, plain.error),
    )
    found, first = [], 0
    for w in matrices:
        at = slice(first, first + w.shape[0])
        first = at.stop
        report = GptqReport(
            rows=w.shape[0],
            error=float(chosen.error[at].sum()),
            nearest=float(plain.error[at].sum()),
            kept=int((tried.error > plain.error)[at].sum()),
            damping=factor.damping,
            raised=factor.raised,
            dead=factor.dead,
        )
        codes, params = chosen.codes[at].contiguous(), {name: p[at] for name, p in chosen.params.items()}
        own = Rounded(codes, params, report)
        if not isinstance(w, Tensor):
            own = Rounded(as_numpy(codes), {name: as_numpy(p) for name, p in params.items()}, report)
        found.append(own)
    return found


@dataclass(frozen=True)
class _Sweeps:
    """Rounds of coordinate descent, and whether they refit scales."""

    count: int
    refit: bool


@dataclass(frozen=True)
class _Attempt:
    """Codes uint8 [rows, cols], parameters, and the error of their outputs, float64 [rows]."""

    codes: Tensor
    params: dict[str, Tensor]
    error: Tensor


def _by_slab(
    rows: Tensor, slab: CoreSlab | TritonSlab, format: Format, factor: Factor, how: _Sweeps
) -> tuple[_Attempt, _Attempt]:
    """The nearest codes, and GPTQ's, in the C++ core or by Triton's kernels."""
    params = _fitted(format, rows, factor.diagonal)
    codes, error = slab.nearest(_grid(format, params))
    plain = _Attempt(codes, params, error)
    params = _fitted(format, rows, factor.importance)
    slab.feedback(_grid(format, params), params)
    for _ in range(how.count):
        slab.descend(format, refit=how.refit)
    return plain, _Attempt(slab.codes(), slab.params, slab.error())


def _grid(format: Format, params: dict[str, Tensor]) -> Grid:
    """The grid of a format that gives each weight its own code."""
    grid = format.grid(params)
    assert isinstance(grid, Grid)
    return grid


def _by_torch(rows: Tensor, format: Format, factor: Factor, how: _Sweeps) -> tuple[_Attempt, _Attempt]:
    """The same on torch tensors, on any device: the definition."""
    codes, params = _nearest(format, rows, factor.diagonal)
    error = (rows - format.grid(params).values(codes)).T.contiguous()
    plain = _Attempt(codes, params, output_error(error, factor))
    slab, found = _rounded(rows.T.contiguous(), format, factor, how)
    return plain, _Attempt(found.T, slab.params, output_error(slab.error, factor))


def joined(reports: Iterable[GptqReport]) -> GptqReport:
    """The report on all rows from the reports on slabs; at least one."""
    parts = list(reports)
    return GptqReport(
        rows=sum(part.rows for part in parts),
        error=sum(part.error for part in parts),
        nearest=sum(part.nearest for part in parts),
        kept=sum(part.kept for part in parts),
        damping=max(part.damping for part in parts),
        raised=any(part.raised for part in parts),
        dead=parts[0].dead,
    )


def _rounded(weights: Tensor, format: Format, factor: Factor, how: _Sweeps) -> tuple[Slab, Tensor]:
    """GPTQ's pass and the sweeps over weights [cols, rows]: the slab, and its codes [cols, rows] or [vectors, rows]."""
    params = _fitted(format, weights.T.contiguous(), factor.importance)
    if isinstance(format, CodeBookFormat):
        slab = vectors.feedback(weights, format, params, factor)
        for _ in range(how.count):
            vectors.descend(slab, format, factor, refit=how.refit)
        assert isinstance(slab.column_grid, vectors.VectorColumns)
        return slab, slab.column_grid.codes
    slab = _feedback(weights, format, params, factor)
    for _ in range(how.count):
        descend(slab, format, factor, refit=how.refit)
    assert isinstance(slab.column_grid, ColumnGrid)
    return slab, slab.column_grid.codes(slab.levels)


def _nearest(format: Format, rows: Tensor, importance: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The nearest codes, with scales weighted by an importance."""
    if isinstance(format, VectorFormat):
        found, params = format.nearest(rows, importance)
        return found, dict(params)
    params = _fitted(format, rows, importance)
    codes: Tensor = format.grid(params).nearest(rows)
    return codes, params


def _on_device(w: Array, factor: Factor) -> Tensor:
    rows = torch.as_tensor(w, device=factor.hessian.device)
    if rows.ndim != 2 or rows.shape[1] != factor.cols:
        raise TensorError(
            f"expected weights [rows, {factor.cols}] to match the Hessian, found {list(rows.shape)}. The statistics "
            "belong to another tensor; calibrate again."
        )
    if not bool(torch.isfinite(rows).all()):
        raise TensorError("the weights hold NaN or infinite values; the checkpoint is damaged: download it again.")
    return rows


def _even(rows: Tensor) -> Tensor:
    missing = -rows.shape[0] % EVEN_ROWS
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows


def _fitted(format: Format, rows: Tensor, importance: Tensor) -> dict[str, Tensor]:
    """`Format.fit`, on numpy buffers if the rows are on the CPU, because that is faster."""
    if rows.device.type != "cpu":
        return dict(format.fit(rows, importance))
    weights, columns = rows.numpy(), importance.numpy()
    threads = torch.get_num_threads()
    found = fitted(format, weights, columns, threads=threads) if usable(columns) else None
    params = format.fit(weights, columns) if found is None else found
    return {name: _as_torch(np.ascontiguousarray(p)) for name, p in params.items()}


def _as_torch(p: np.ndarray) -> Tensor:
    if p.dtype.name == "bfloat16":
        return torch.from_numpy(p.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(p)


def _feedback(weights: Tensor, format: Format, params: dict[str, Tensor], factor: Factor) -> Slab:
    """GPTQ's pass: rounds weights [cols, rows] in the factor's order, with lazy updates of STEP columns."""
    cols = factor.cols
    column_grid = ColumnGrid(_grid(format, params), cols)
    order = factor.order.tolist()
    ordered = weights if factor.natural else weights[factor.order]
    levels, error = torch.empty_like(weights), torch.empty_like(weights)
    u = factor.feedback
    for start in range(0, cols, STEP):
        stop = min(start + STEP, cols)
        target = product(u[:start, start:stop], error[:start]).add_(ordered[start:stop])
        for left in range(start, stop, STRIP):
            right = min(left + STRIP, stop)
            for j in range(left, right):
                level = column_grid.level(order[j], target[j - start])
                levels[order[j]] = level
                torch.sub(ordered[j], column_grid.value(order[j], level), out=error[j])
                if j + 1 < right:
                    target[j + 1 - start : right - start].addr_(u[j, j + 1 : right], error[j])
            if right < stop:
                target[right - start :].addmm_(u[left:right, right:stop].T, error[left:right])
    if not factor.natural:
        by_column = torch.empty_like(error)
        by_column[factor.order] = error
        error = by_column
    return Slab(weights, levels, error, column_grid, params)

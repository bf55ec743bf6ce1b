"""Rounds one matrix, given the statistics of its input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from torch import Tensor

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.awq import fit_clipped
from bitsmith.quant.formats.base import Format, NeedsExtent, Params, Settled, SharesExtent, VectorFormat
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.lattice import probe, probed_rows, recover
from bitsmith.quant.rounders.effort import Effort
from bitsmith.quant.rounders.gptq import EVEN_ROWS, SLAB_ROWS, GptqReport, Rounded, gptq_rows, joined
from bitsmith.quant.rounders.hessian import corrected, correction, prepare
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.pressure import is_shortage


@dataclass(frozen=True)
class RoundingReport:
    """The report on rounding a matrix.

    gptq: None if the codes are the nearest
    recovered: whether all rows lay on the format's grid, and are kept exactly
    cut: whether memory ran short, so that fewer rows than usual were rounded at a time
    """

    gptq: GptqReport | None = None
    recovered: bool = False
    cut: bool = False

    @classmethod
    def joined(cls, parts: Iterable[RoundingReport]) -> RoundingReport:
        """The report on all rows, from the reports on slabs of rows."""
        every = tuple(parts)
        found = [part.gptq for part in every if part.gptq is not None]
        whole = all(part.recovered for part in every)
        return cls(joined(found) if found else None, whole, any(part.cut for part in every))


def plain_nearest(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
    """Nearest codes, for a matrix whose input is unknown."""
    w = as_numpy(weight)
    format = _with_extent(format, w)
    slabs = []
    for start in range(0, len(w), SLAB_ROWS):
        slabs.append(_nearest(w[start : start + SLAB_ROWS], format, None))
    return _whole(format, slabs), RoundingReport()


def _nearest(rows: np.ndarray, format: Format, stats: Stats | None) -> tuple[np.ndarray, Params]:
    """The nearest codes, and parameters for them; statistics weight the columns."""
    if isinstance(format, VectorFormat):
        return format.nearest(rows, None if stats is None else stats.importance)
    params = format.fit(rows, None) if stats is None else fit_clipped(rows, format, stats)
    codes: np.ndarray = format.grid(params).nearest(rows)
    return codes, params


def on_grid(rounder: LinearRounder) -> LinearRounder:
    """A rounder that keeps rows which lie on the format's grid already, see `quant.lattice`."""

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        w = as_numpy(weight)
        if not probe(w[list(probed_rows(len(w)))], format):
            return rounder(weight, format)
        kept, found = recover(w, format)
        if found.all():
            return kept, RoundingReport(recovered=True)
        tensor, said = rounder(weight, format)
        params = {name: values.copy() for name, values in tensor.params.items()}
        codes = tensor.codes.copy()
        codes[found] = kept.codes[found]
        for name, values in kept.params.items():
            params[name][found] = values[found]
        return QuantTensor(format, codes, params), said

    return round


_ACCELERATED_ROWS = 8 * SLAB_ROWS  # on an accelerator the time depends on the number of columns, not on their length
LinearRounder = Callable[[Tensor, Format], tuple[QuantTensor, RoundingReport]]  # the weight: float32 [rows, cols]


def clipped_nearest(stats: Stats) -> LinearRounder:
    """Nearest codes with scales that lower the error of the outputs, see `fit_clipped`."""
    stats = replace(stats, gram=as_numpy(stats.gram))

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        w = as_numpy(weight)
        format = _with_extent(format, w)
        slabs = []
        for start in range(0, len(w), SLAB_ROWS):
            slabs.append(_nearest(w[start : start + SLAB_ROWS], format, stats))
        return _whole(format, slabs), RoundingReport()

    return round


def gptq_rounder(stats: Stats, drift: Tensor | None, effort: Effort) -> LinearRounder:
    """GPTQ with the Hessian of the statistics, which is factored once.

    drift: sum of (x - x')^T x', [cols, cols], where x are the original model's inputs and x' the inputs in `stats`;
        weights are first corrected for it, see `correction`
    """
    assert stats.gram is not None
    hessian = stats.gram / max(stats.count, 1)
    factor = prepare(hessian)
    by_vectors = cache(lambda: prepare(hessian, order="vectors"))
    moves = None if drift is None else correction(factor, drift / max(stats.count, 1))

    sweeps = effort.sweeps
    step = SLAB_ROWS if factor.hessian.device.type == "cpu" else _ACCELERATED_ROWS

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        if moves is not None:
            weight = corrected(weight, moves)
        format = _with_extent(format, weight)
        own = by_vectors() if isinstance(format, VectorFormat) else factor
        slabs: list[Rounded] = []
        starts = range(0, weight.shape[0], step)
        for start in starts:
            slabs += _in_slabs(weight[start : start + step], lambda rows: gptq_rows(rows, format, own, sweeps=sweeps))
        tensor = _whole(format, [(slab.codes, slab.params) for slab in slabs])
        return tensor, RoundingReport(joined(slab.report for slab in slabs), cut=len(slabs) > len(starts))

    return round


def _in_slabs(rows: Tensor, make: Callable[[Tensor], Rounded]) -> list[Rounded]:
    """Rows rounded at once; where memory does not suffice, one half after the other, to the same codes."""
    count = rows.shape[0]
    try:
        return [make(rows)]
    except (MemoryError, RuntimeError) as error:
        if count <= EVEN_ROWS or not is_shortage(error):
            raise
    middle = -(-count // 2 // EVEN_ROWS) * EVEN_ROWS if count > 2 * EVEN_ROWS else EVEN_ROWS
    return [*_in_slabs(rows[:middle], make), *_in_slabs(rows[middle:], make)]


def with_shared_extent(matrices: Mapping[str, tuple[Tensor, Format]]) -> dict[str, Format]:
    """The formats of matrices that share an input. Those with one scale for all of them get the extent of all.

    matrices: the weight, float32 [rows, cols], and the format of each by name
    """
    alike: dict[str, list[Tensor]] = {}
    for weight, format in matrices.values():
        if isinstance(format, SharesExtent) and format.shares_extent:
            alike.setdefault(format.name, []).append(weight)
    extents = {
        name: (min(float(w.min()) for w in weights), max(float(w.max()) for w in weights))
        for name, weights in alike.items()
    }
    return {
        name: format.with_extent(*extents[format.name])
        if isinstance(format, SharesExtent) and format.name in extents
        else format
        for name, (_, format) in matrices.items()
    }


def _with_extent(format: Format, w: Tensor | np.ndarray) -> Format:
    """The format, with the extent of the matrix if it needs one and has none yet."""
    if isinstance(format, SharesExtent) and format.low is not None:
        return format  # that of all matrices which share a scale
    return format.with_extent(float(w.min()), float(w.max())) if isinstance(format, NeedsExtent) else format


def _whole(format: Format, slabs: Sequence[tuple[Tensor | np.ndarray, Params]]) -> QuantTensor:
    """Join the codes and parameters of slabs of rows to one tensor of numpy arrays."""
    params = {name: np.concatenate([as_numpy(slab[name]) for _, slab in slabs]) for name in slabs[0][1]}
    if isinstance(format, Settled):
        params = format.settled(params)
    return QuantTensor(format, np.concatenate([as_numpy(codes) for codes, _ in slabs]), params)

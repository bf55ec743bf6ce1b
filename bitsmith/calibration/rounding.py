"""How one matrix is rounded once the statistics of its input are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.awq import fit_clipped
from bitsmith.quant.formats.base import Format, NeedsExtent, Params
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.rounders.effort import Effort
from bitsmith.quant.rounders.gptq import SLAB_ROWS, GptqReport, gptq_rows, joined
from bitsmith.quant.rounders.hessian import corrected, correction, prepare
from bitsmith.quant.tensor import QuantTensor


@dataclass(frozen=True)
class RoundingReport:
    """What rounding a matrix cost; `gptq` is None where codes are the nearest."""

    gptq: GptqReport | None = None

    @classmethod
    def joined(cls, parts: Iterable[RoundingReport]) -> RoundingReport:
        """Of all rows, from those of slabs."""
        found = [part.gptq for part in parts if part.gptq is not None]
        return cls(joined(found) if found else None)


_ACCELERATED_ROWS = 8 * SLAB_ROWS  # there the time goes by columns, whatever their length
LinearRounder = Callable[[Tensor, Format], tuple[QuantTensor, RoundingReport]]  # of a weight, float32 [rows, cols]


def clipped_nearest(stats: Stats) -> LinearRounder:
    """Nearest codes under scales that lower the error of the outputs, see `fit_clipped`."""
    stats = replace(stats, gram=as_numpy(stats.gram))

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        w = as_numpy(weight)
        format = _told(format, w)
        slabs = []
        for start in range(0, len(w), SLAB_ROWS):
            rows = w[start : start + SLAB_ROWS]
            params = fit_clipped(rows, format, stats)
            slabs.append((format.grid(params).nearest(rows), params))
        return _whole(format, slabs), RoundingReport()

    return round


def gptq_rounder(stats: Stats, drift: Tensor | None, effort: Effort) -> LinearRounder:
    """GPTQ under the statistics' Hessian, factored once.

    drift: sum of (x - x')^T x', [cols, cols], x the original's inputs, x' those that were counted; weights are first
        moved to make up for it, see `correction`
    """
    assert stats.gram is not None
    factor = prepare(stats.gram / max(stats.count, 1))
    moves = None if drift is None else correction(factor, drift / max(stats.count, 1))

    step = SLAB_ROWS if factor.hessian.device.type == "cpu" else _ACCELERATED_ROWS

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        if moves is not None:
            weight = corrected(weight, moves)
        format = _told(format, weight)
        slabs = [
            gptq_rows(weight[start : start + step], format, factor, sweeps=effort.sweeps)
            for start in range(0, weight.shape[0], step)
        ]
        tensor = _whole(format, [(slab.codes, slab.params) for slab in slabs])
        return tensor, RoundingReport(joined(slab.report for slab in slabs))

    return round


def _told(format: Format, w: Tensor | np.ndarray) -> Format:
    """The format, told the matrix's extent where it needs it."""
    return format.with_extent(float(w.min()), float(w.max())) if isinstance(format, NeedsExtent) else format


def _whole(format: Format, slabs: list[tuple[Tensor | np.ndarray, Params]]) -> QuantTensor:
    """Codes and parameters of slabs of rows as one tensor of numpy arrays."""
    params = {name: np.concatenate([as_numpy(slab[name]) for _, slab in slabs]) for name in slabs[0][1]}
    return QuantTensor(format, np.concatenate([as_numpy(codes) for codes, _ in slabs]), params)

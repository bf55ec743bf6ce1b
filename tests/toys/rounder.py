"""A toy rounder: the nearest codes, whatever the statistics say."""

from __future__ import annotations

from torch import Tensor

from bitsmith.calibration.drift import Drift
from bitsmith.calibration.rounders import Rounder
from bitsmith.calibration.rounding import LinearRounder, RoundingReport
from bitsmith.calibration.stats import Stats
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.rounders.effort import Effort
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor


def toy_rounder(stats: Stats, drift: Drift | None, effort: Effort) -> LinearRounder:
    """What rounds the matrices of one group."""

    def round(weight: Tensor, format: Format) -> tuple[QuantTensor, RoundingReport]:
        codes, params = nearest(as_numpy(weight), format, None)
        return QuantTensor(format, codes, params), RoundingReport()

    return round


ROW = Rounder("toy", toy_rounder)

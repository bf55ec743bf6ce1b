"""Calibrated rounding, for costs: scales weighted by the inputs, and what GPTQ gains over such codes.

Whole runs of GPTQ for every type would take far too long. Rows do not depend on each other, given the inputs, so GPTQ
rounds some rows of each matrix, in one type with a code book and one of 4 bits, and its gain holds for the other rows
and for types of the same kind. Where no type has a code book, one of 2 bits is the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from bitsmith.calibration.collect import HEAD, Wanted, block_loader, collect
from bitsmith.calibration.importance import Importance
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.sensitivity.footprint import gram_bytes
from bitsmith.calibration.sensitivity.rounded import rounded
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import Stats
from bitsmith.calibration.stored_embedding import EMBEDDING, first_readers
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.quant.formats.base import Format, NeedsExtent, Settled, VectorFormat
from bitsmith.quant.rounders.gptq import gptq_rows
from bitsmith.quant.rounders.hessian import Factor, prepare
from bitsmith.recipe.plan import PlannedTensor
from bitsmith.system.memory import available_memory
from bitsmith.system.progress import Progress, Report, silent

_ROWS = 32
_FINE = 8  # bits from which GPTQ is not used
_SHARE = 0.25  # of the memory, for Gram matrices
_FEW, _SOME = 2, 4  # bits of the types that GPTQ rounds
_HOLDS = 0.75  # share of a gain's logarithm that counts: on another text than that of the calibration, GPTQ gains less


@dataclass(frozen=True)
class WeightedRounding:
    """Nearest codes whose scales are weighted.

    importance: float32 [cols] by matrix; in others all columns count equally
    gains: of GPTQ, if it chooses the codes of the run
    """

    importance: Mapping[str, np.ndarray] = field(default_factory=dict)
    gains: GptqGains | None = None

    def __call__(self, name: str, w: np.ndarray, planned: PlannedTensor) -> np.ndarray:
        """See `measuring.Rounding`."""
        return rounded(w, planned, self.importance.get(name))


@dataclass
class GptqGains:
    """The share of the error that GPTQ leaves of weighted nearest codes, matrix by matrix.

    stats: with Gram matrices, by matrix; others have a gain of 1
    """

    stats: Mapping[str, Stats]
    report: Report = silent
    _factors: dict[int, Factor] = field(default_factory=dict)

    def of(self, name: str, w: np.ndarray, tensors: tuple[PlannedTensor, ...]) -> np.ndarray:
        """float64 [types], for a matrix float32 [rows, cols] in each of its types."""
        stats = self.stats.get(name)
        if stats is None or stats.gram is None:
            return np.ones(len(tensors))
        formats = [None if each.format is None or each.format.bits >= _FINE else each.format for each in tensors]
        rows = w[np.linspace(0, len(w) - 1, min(_ROWS, len(w))).round().astype(np.int64)]
        books = next((each for each in formats if isinstance(each, VectorFormat) and each.bits == _FEW), None)
        known: dict[int, float] = {}
        for bits in (_SOME,) if books else (_FEW, _SOME):
            format = next((each for each in formats if each and each.bits == bits), None)
            if format is not None:
                known[bits] = self._gain(rows, format, stats)
        of_books = None if books is None else self._gain(rows, books, stats)
        self.report(Progress("gptq", 0, 1, "matrices", name))
        found = np.ones(len(formats))
        for at, each in enumerate(formats):
            if each is not None:
                books_gain = of_books if isinstance(each, VectorFormat) else None
                found[at] = _between(known, each.bits) if books_gain is None else books_gain
        return np.asarray(found**_HOLDS)

    def _gain(self, rows: np.ndarray, format: Format, stats: Stats) -> float:
        if isinstance(format, NeedsExtent | Settled):
            return 1.0
        factor = self._factors.get(id(stats))
        if factor is None:
            self._factors.clear()  # groups come one after the other
            gram = torch.from_numpy(np.array(stats.gram)) / max(stats.count, 1)
            factor = self._factors[id(stats)] = prepare(gram, damping=stats.damping)
        said = gptq_rows(torch.from_numpy(np.ascontiguousarray(rows)), format, factor).report
        return min(said.error / said.nearest, 1.0) if said.nearest > 0 else 1.0


def _between(known: Mapping[int, float], bits: int) -> float:
    """The gain of a type, from those of two widths, or of one."""
    if not known:
        return 1.0
    if bits <= _FEW:
        return known.get(_FEW, next(iter(known.values())))
    if bits >= _SOME:
        return known.get(_SOME, next(iter(known.values())))
    return float(np.sqrt(np.prod([known.get(each, next(iter(known.values()))) for each in (_FEW, _SOME)])))


def calibrated(
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    *,
    importance: Importance | None = None,
    gptq: bool = False,
    resources: Resources,
    report: Report = silent,
) -> WeightedRounding:
    """The rounding of a calibrated run.

    importance: of an importance file; None: it is measured on the tokens
    Without memory for Gram matrices, GPTQ's gain counts as equal for all matrices.
    """
    config = checkpoint.config
    if importance is not None:
        known = {name: importance.of(f"{name}.weight") for name in _linears(config)}
        return WeightedRounding({name: each[0] for name, each in known.items() if each is not None})
    room = resources.memory or int(_SHARE * (available_memory() or 1 << 30))
    grams = gptq and gram_bytes(config) < room
    found = collect(
        checkpoint,
        tokens,
        wanted=Wanted(gram=grams),
        memory=resources.memory,
        threads=resources.threads,
        device=resources.device,
        report=report,
    )
    stats = dict(found.stats)
    if found.tied:
        stats[EMBEDDING] = stats.pop(HEAD)
    importances = {name: each.importance for name, each in stats.items()}
    readers = None if found.tied or not grams else first_readers(block_loader(checkpoint, resources.device))
    if readers is not None:
        stats[EMBEDDING] = readers
    return WeightedRounding(importances, GptqGains(stats, report) if grams else None)


def _linears(config: ModelConfig) -> list[str]:
    names = [f"blk.{layer}.{name}" for layer in range(config.layers) for name in linear_shapes(config, layer)]
    return [*names, EMBEDDING if config.tied else HEAD]

"""Calibrated rounding, for costs: scales weighted by the inputs, and what GPTQ gains over such codes.

Whole runs of GPTQ for every type would take far too long. Rows do not depend on each other, given the inputs, so GPTQ
rounds some rows of the matrices of one block in three, in each type, and its gain holds for the other rows and for the
same matrices of the next two blocks. Types differ: GPTQ gains most where weights share a scale alone (Q5_0), and less
where they share an offset too (Q4_1). All code books count as the first of them.
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
_EVERY = 3  # one block of so many is measured; the gains of a type hardly differ between neighbours
_BOOKS = "books"  # one gain for all types with code books
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
    _known: dict[str, dict[str, float]] = field(default_factory=dict)  # by matrix of a block, by type

    def of(self, name: str, w: np.ndarray, tensors: tuple[PlannedTensor, ...]) -> np.ndarray:
        """float64 [types], for a matrix float32 [rows, cols] in each of its types."""
        stats = self.stats.get(name)
        if stats is None or stats.gram is None:
            return np.ones(len(tensors))
        block, kind = _place(name)
        known = self._known.setdefault(kind, {})
        if block % _EVERY == 0:
            known.clear()
        rows = w[np.linspace(0, len(w) - 1, min(_ROWS, len(w))).round().astype(np.int64)]
        found = np.ones(len(tensors))
        for at, each in enumerate(tensors):
            if each.format is not None and each.format.bits < _FINE:
                label = _BOOKS if isinstance(each.format, VectorFormat) else each.info.layout
                if label not in known:
                    known[label] = self._gain(rows, each.format, stats)
                found[at] = known[label]
        self.report(Progress("gptq", 0, 1, "matrices", name))
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


def _place(name: str) -> tuple[int, str]:
    """The block, and which of its matrices, of "blk.3.ffn_up"; others are in block 0."""
    first, _, rest = name.removeprefix("blk.").partition(".")
    return (int(first), rest) if first.isdigit() else (0, name)


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

"""The front of a model: the size of the best files against what they are expected to lose, with mixes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import BitsmithError, UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.pipeline.budget import Budget, budget_of
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.fitting import open_target
from bitsmith.pipeline.outputs import outputs_of
from bitsmith.pipeline.result import Quantized
from bitsmith.pipeline.sensitivities import Sensitivities, sensitivities_of
from bitsmith.planner.figure import new_figure, save_figure
from bitsmith.planner.model_spec import require_files
from bitsmith.recipe.allocation.rules import rules_of
from bitsmith.recipe.allocation.search import best, largest, smallest
from bitsmith.recipe.allocation.units import Allocatable
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target
from bitsmith.system.progress import Report, silent
from bitsmith.system.tables import html_table

_POINTS = 14
_MIXES = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq4_xs", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0")


@dataclass(frozen=True)
class Point:
    """One file. name: of a mix, or "" for types chosen by size; loss: expected mean KLD, nats a token"""

    name: str
    nbytes: int
    bits_per_weight: float
    loss: float
    fits: bool


@dataclass(frozen=True, repr=False)
class Front:
    """The best files of a model by size, and the usual mixes. room: the budget as the user gave it"""

    model: str
    target: Target
    room: str
    points: tuple[Point, ...]
    mixes: tuple[Point, ...]
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        return f"<Front of {self.model!r}: {len(self.points)} sizes, {len(self.mixes)} mixes>"

    def _repr_html_(self) -> str:
        rows = [
            (each.name or "chosen", f"{each.nbytes:,}", f"{each.bits_per_weight:.2f}", f"{each.loss:.4g}")
            for each in self.sorted
        ]
        return html_table(f"{self.model}, {self.room}", rows, headings=("types", "bytes", "bits", "expected loss"))

    @property
    def sorted(self) -> list[Point]:
        """All files by size, the largest first."""
        return sorted((*self.points, *self.mixes), key=lambda each: -each.nbytes)

    @property
    def chosen(self) -> Point | None:
        """The best file that fits; None if none does."""
        return min((each for each in self.points if each.fits), key=lambda each: each.loss, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "container": self.target.container,
            "budget": self.room,
            "points": [asdict(each) for each in self.points],
            "mixes": [asdict(each) for each in self.mixes],
        }


def front(
    model: str | Path,
    *,
    fit: str,
    to: str | None = None,
    context: int | None = None,
    kv: str | None = None,
    revision: str | None = None,
    report: Report = silent,
) -> Front:
    """Find the front. Sensitivities are measured at the first call for a model, and kept.

    fit, context, kv: as for `quantize`; the points are the sizes around what fits
    to: a container; None: gguf
    Raises UsageError for an unknown device, or a model without a choice; errors of the model.
    """
    config = QuantizeConfig(fit=fit, context=context, kv=kv, revision=revision)
    require_files(model)
    checkpoint = open_checkpoint(model, revision=revision)
    target = open_target([] if to is None else [to], config, checkpoint)
    budget = budget_of(config, checkpoint, target.container)
    allocatable = Allocatable(checkpoint, target, PlanOptions(filename="plan.gguf"))
    if not allocatable.units:
        raise UsageError(
            f"--fit={quoted(fit)}: no matrix of {checkpoint.name} has more than one type; there is no front."
        )
    measured = sensitivities_of(allocatable, config, report)
    files = _Files(checkpoint, target, config, budget, allocatable, measured)
    points = [files.point(size) for size in _sizes(allocatable)]
    mixes = [files.mix(name) for name in _MIXES] if target.container == "gguf" else []
    found = tuple(each for each in mixes if each is not None)
    return Front(checkpoint.name, target, budget.said.removeprefix("--"), tuple(points), found, checkpoint.files)


def _sizes(allocatable: Allocatable) -> list[int]:
    """Bytes of units, in equal ratios from the smallest to half of the largest."""
    low, high = smallest(allocatable.units), largest(allocatable.units)
    return [int(each) for each in np.geomspace(low, max(0.55 * high, low), _POINTS)]


@dataclass(frozen=True)
class _Files:
    checkpoint: Checkpoint
    target: Target
    config: QuantizeConfig
    budget: Budget
    open: Allocatable
    measured: Sensitivities

    def point(self, nbytes: int) -> Point:
        """The best file whose units have `nbytes`."""
        costs = self.measured.costs
        chosen = best(self.open.units, costs, nbytes)
        rules = rules_of(unit.choices[at] for unit, at in zip(self.open.units, chosen, strict=True))
        planned = self._planned(self.target, replace(self.config, rules=rules))
        return self._point("", planned, self.measured.total(chosen))

    def mix(self, name: str) -> Point | None:
        """A mix; None if the model cannot be written in it, or if a tensor has a type that is no choice."""
        try:
            planned = self._planned(Target("gguf", name), self.config)
        except BitsmithError:
            return None
        layouts = {tensor.info.name: tensor.info.layout for tensor in planned.plan.tensors}
        chosen = []
        for unit in self.open.units:
            labels = [choice.label for choice in unit.choices]
            if layouts.get(unit.names[0]) not in labels:
                return None
            chosen.append(labels.index(layouts[unit.names[0]]))
        return self._point(name, planned, self.measured.total(chosen))

    def _planned(self, target: Target, config: QuantizeConfig) -> Quantized:
        return outputs_of(self.checkpoint, [target], config, effort="normal", prepared=None, device="cpu")[0].planned()

    def _point(self, name: str, planned: Quantized, loss: float) -> Point:
        return Point(name, planned.size, planned.bits_per_weight, loss, self.budget.over(planned) <= 0)


def draw(found: Front, path: Path) -> None:
    """Write the front as a PNG file. An older picture is replaced.

    Raises UsageError without matplotlib or if the name does not end in .png, FileError if the file cannot be written.
    """
    figure = new_figure(path)
    axes = figure.add_subplot()
    _series(axes, found.points, "chosen tensor by tensor", "-o")
    _series(axes, found.mixes, "mixes", "s")
    for each in found.mixes:
        axes.annotate(each.name, (each.nbytes / 1e6, each.loss), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("size of the file, MB")
    axes.set_ylabel("expected mean KLD, nats a token")
    axes.set_title(f"{found.model}: size and expected loss")
    axes.legend()
    save_figure(figure, path, sources=found.files)


def _series(axes: Any, points: Sequence[Point], label: str, style: str) -> None:
    shown = [each for each in points if each.loss > 0]
    if shown:
        axes.plot([each.nbytes / 1e6 for each in shown], [each.loss for each in shown], style, label=label)

"""The front of a model: the size of the best files against what they are expected to lose, with mixes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import BitsmithError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.budget import Size, budget_of
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.fitting import Planned, Room, choose, open_target
from bitsmith.pipeline.outputs import check_grouping, outputs_of, with_importance
from bitsmith.pipeline.quantization import calibration_of
from bitsmith.pipeline.result import Quantized
from bitsmith.pipeline.sensitivities import Sensitivities, sensitivities_of
from bitsmith.planner.figure import new_figure, save_figure
from bitsmith.planner.model_spec import require_files
from bitsmith.recipe.allocation.search import largest, smallest
from bitsmith.recipe.target import Target
from bitsmith.system.progress import Report, silent
from bitsmith.system.tables import html_table

_POINTS = 12
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
    """The best files of a model by size, and the usual mixes.

    room: the budget as the user gave it
    points: the smallest first
    chosen: the one that `quantize` makes for the budget; None if none fits, for `reason`
    """

    model: str
    target: Target
    room: str
    points: tuple[Point, ...]
    mixes: tuple[Point, ...]
    chosen: Point | None
    files: tuple[Path, ...] = ()
    reason: str = ""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "container": self.target.container,
            "budget": self.room,
            "points": [asdict(each) for each in self.points],
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "reason": self.reason,
            "mixes": [asdict(each) for each in self.mixes],
        }


def front(model: str | Path, config: QuantizeConfig, *, to: str | None = None, report: Report = silent) -> Front:
    """Find the front. Sensitivities are measured at the first call for a model, and kept.

    config: options of `quantize`, with `fit`
    to: a container; None: gguf
    Raises UsageError for an unknown device, or a model without a choice; errors of the model.
    """
    require_files(model)
    checkpoint = open_checkpoint(model, revision=config.revision)
    target = open_target([] if to is None else [to], config, checkpoint)
    check_grouping([target], config)
    config, _ = with_importance(checkpoint, [target], config)
    prepared, device = calibration_of(checkpoint, [target], config, report)

    def planned(target: Target, config: QuantizeConfig) -> Quantized:
        effort = config.effort or "normal"
        return outputs_of(checkpoint, [target], config, effort=effort, prepared=prepared, device=device)[0].planned()

    budget = budget_of(config, checkpoint, target.container)
    room = Room(checkpoint, target, config, planned, budget, prepared)
    measured = sensitivities_of(room.open, config, report, prepared=prepared, options=False)
    files = _Files(room, planned, measured)
    own = None if room.least > 0 else files.best(room)
    points = {point.nbytes: point for point in map(files.of_size, files.sizes())}
    points |= {} if own is None else {own.nbytes: own}
    mixes = [files.mix(name) for name in _MIXES] if target.container == "gguf" else []
    found = tuple(each for each in mixes if each is not None)
    room_said, ordered = budget.said.removeprefix("--"), tuple(points[at] for at in sorted(points))
    reason = "" if own is not None else budget.smallest(room.smallest_plan)
    return Front(checkpoint.name, target, room_said, ordered, found, own, checkpoint.files, reason)


@dataclass(frozen=True)
class _Files:
    """The files of a front. room: of the budget; planned: gives the plan of an output"""

    room: Room
    planned: Planned
    measured: Sensitivities

    def sizes(self) -> list[int]:
        """Bytes of files, in equal ratios from the smallest to that of the largest types."""
        units, least = self.room.open.units, self.room.smallest_plan.size - self.room.smallest_units
        steps = np.geomspace(smallest(units), largest(units), _POINTS)
        return [least + int(each) for each in steps[:-1]] + [self._widest().size]

    def of_size(self, nbytes: int) -> Point:
        """The file that `quantize --size` makes of so many bytes."""
        return self.best(self.room.within(Size(nbytes, f"{nbytes}")))

    def best(self, room: Room) -> Point:
        """The file that `quantize` makes for a budget."""
        if room.whole <= 0:
            return self._point("", self._widest(), self.measured.expected(room.widest_choice, largest(room.open.units)))
        chosen, loss = choose(room, self.measured)
        return self._point("", room.planned(chosen), loss)

    def mix(self, name: str) -> Point | None:
        """A mix; None if the model cannot be written in it, or if a tensor has a type that is no choice."""
        try:
            planned = self.planned(Target("gguf", name), self.room.config)
        except BitsmithError:
            return None
        layouts = {tensor.info.name: tensor.info.layout for tensor in planned.plan.tensors}
        if any(layouts.get(unit.names[0]) != unit.choices[0].label for unit in self.room.open.fixed):
            return None
        chosen = []
        for unit in self.room.open.units:
            labels = [choice.label for choice in unit.choices]
            if layouts.get(unit.names[0]) not in labels:
                return None
            chosen.append(labels.index(layouts[unit.names[0]]))
        taken = sum(unit.choices[at].nbytes for unit, at in zip(self.room.open.units, chosen, strict=True))
        return self._point(name, planned, self.measured.measured(chosen, taken))

    def _widest(self) -> Quantized:
        found = self.room.widest()
        return self.planned(found.target, found.config)

    def _point(self, name: str, planned: Quantized, loss: float) -> Point:
        return Point(name, planned.size, planned.bits_per_weight, loss, self.room.budget.over(planned) <= 0)


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

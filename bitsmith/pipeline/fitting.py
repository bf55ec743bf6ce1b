"""Budgets of `quantize`: from `--bits`, `--size` or `--fit` to a type for each tensor, or from a recipe file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.resources import Resources
from bitsmith.containers import find_container
from bitsmith.containers.destination import check_parent, followed
from bitsmith.errors import BitsmithError, FileError, UnsupportedError, UsageError, Words
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.naming import output_stem
from bitsmith.pipeline.budget import WIDEST, Budget, budget_of
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.allocation.rules import rules_of
from bitsmith.recipe.allocation.search import best, largest, smallest
from bitsmith.recipe.allocation.solver import Time
from bitsmith.recipe.allocation.units import Allocatable, Unit
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.recipe_file import RecipeFile
from bitsmith.recipe.target import Target
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.calibration.run import Prepared
    from bitsmith.pipeline.sensitivities import Sensitivities
    from bitsmith.pipeline.token_time import TokenTime

_log = logging.getLogger(__name__)

_MIXES = (
    ("q2_k", 0.0),
    ("q3_k_m", 3.4),
    ("q4_k_m", 4.5),
    ("q5_k_m", 5.5),
    ("q6_k", 6.5),
    ("q8_0", 8.5),
    ("bf16", 15.9),
)
_USUAL = {"native": "int4", "compressed": "w4a16", "gptq": "int4", "awq": "int4", "bnb": "nf4", "mlx": "4bit"}
_EXPECTED = "expected_kld"  # what a recipe file says of the loss
_TRIES = 12

Planned = Callable[[Target, QuantizeConfig], Quantized]  # the plan of an output, as it will be written


@dataclass(frozen=True)
class Fitted:
    """Types that were chosen.

    config: with rules for them
    notes: for the user
    file: to write; None: none
    expected: mean KLD from the original, nats a token; None where nothing was measured, since the largest types fit
    """

    target: Target
    config: QuantizeConfig
    notes: tuple[str, ...] = ()
    file: RecipeFile | None = None
    expected: float | None = None


def open_target(to: Sequence[str], config: QuantizeConfig, checkpoint: Checkpoint) -> Target:
    """The target of a run with a budget: a container may stand alone, and gguf is the default.

    Raises UsageError for several targets.
    """
    if len(to) > 1:
        raise UsageError("--to is given several times; a budget is for one output.")
    text = to[0].strip().lower() if to else "gguf"
    if text == "gguf":
        parameters = sum(info.parameters for info in checkpoint.source.tensors.values())
        bits = budget_of(config, checkpoint, "gguf").about(parameters)
        return Target("gguf", [name for name, least in _MIXES if least <= bits or not least][-1])
    return Target.parse(f"{text}/{_USUAL[text]}" if text in _USUAL else text)


def named(config: QuantizeConfig, checkpoint: Checkpoint, target: Target) -> QuantizeConfig:
    """The options with an output; one that the user did not name has the budget in its name."""
    if config.out is not None:
        return config
    name = f"{output_stem(checkpoint.name)}-{budget_of(config, checkpoint, target.container).name}"
    folder = find_container(target.container).is_folder
    return replace(config, out=f"{name}-{target.container}" if folder else f"{name}.gguf")


def about(config: QuantizeConfig, checkpoint: Checkpoint, budget: Budget) -> dict[str, object]:
    """What a recipe file says of the run that found it."""
    found: dict[str, object] = {"model": checkpoint.name, "budget": budget.said.removeprefix("--")}
    found |= {"calibration": [Path(each).name for each in config.calibration_sources]} if config.calibration else {}
    found |= {} if config.method is None else {"method": config.method}
    found |= {"rules": list(config.rules)} if config.rules else {}
    return found | ({"keep": list(config.keep)} if config.keep else {})


def check_recipe(config: QuantizeConfig, checkpoint: Checkpoint, container: str) -> None:
    """Raise UsageError if the recipe file of a run exists, unless a run like this one found it, FileError if it cannot
    be written: before the search."""
    if config.recipe is None:
        return
    place = followed(Path(config.recipe).expanduser(), force=config.force)
    check_parent(place)
    if config.force or not place.exists():
        return
    own = about(config, checkpoint, budget_of(config, checkpoint, container))
    try:
        known = dict(RecipeFile.read(place).about)
    except FileError:
        known = {}
    known.pop(_EXPECTED, None)
    if known != own:
        raise UsageError(f"{place} exists already; give --force to replace it, or choose another --recipe.")


def fitted(
    checkpoint: Checkpoint,
    target: Target,
    config: QuantizeConfig,
    planned: Planned,
    *,
    prepared: Prepared | None = None,
    report: Report = silent,
) -> Fitted:
    """Choose the types for the budget of `config`.

    planned: gives the exact plan of an output; called a few times
    prepared: the calibration of the run; None without one
    Raises UsageError for a budget below the smallest legal output, or a model without a choice.
    """
    budget = budget_of(config, checkpoint, target.container)
    room = Room(checkpoint, target, config, planned, budget, prepared)
    if room.whole <= 0 and config.tokens_per_second is None:
        return room.widest()
    if room.least > 0:
        raise UsageError(f"{budget.said}: nothing so small can be written: {budget.smallest(room.smallest_plan)}.")
    from bitsmith.pipeline.sensitivities import sensitivities_of

    pace = Pace.of(room, config, report)
    measured = sensitivities_of(room.open, config, report, prepared=prepared)
    chosen, expected = choose(room, measured, pace)
    return pace.told(room.done(chosen, expected), chosen)


def choose(room: Room, measured: Sensitivities, pace: Pace | None = None) -> tuple[list[int], float]:
    """The types of all units that lose least within the room, and their expected loss, nats a token.

    Raises UsageError if no choice keeps the budget.
    """
    units, nbytes, pace = room.open.units, room.nbytes, pace or Pace("")
    for _ in range(_TRIES):
        chosen = pace.best(units, measured.around(nbytes), nbytes)
        over = room.over(chosen)
        if over <= 0:
            return chosen, measured.expected(chosen, nbytes)
        _log.info("%d bytes over the budget; another try", over)
        if nbytes == room.smallest_units:  # types of the same bytes, but of a larger header
            break
        taken = sum(unit.choices[at].nbytes for unit, at in zip(units, chosen, strict=True))
        # less than this choice takes: it left room that no type fills
        nbytes = max(min(nbytes, taken) - over, room.smallest_units)
    if pace.time is None and room.least <= 0:  # the smallest plan keeps the budget
        smallest_types = [0] * len(units)
        return smallest_types, measured.expected(smallest_types, room.smallest_units)
    raise UsageError(f"{room.budget.said}: no choice of types keeps it; give a slightly larger one.")


@dataclass(frozen=True)
class Pace:
    """The speed that was asked for. time: of a token; None: none was asked for"""

    said: str
    tokens_per_second: float = 0.0
    time: TokenTime | None = None

    @classmethod
    def of(cls, room: Room, config: QuantizeConfig, report: Report) -> Pace:
        """Measures what tokens take. Raises UsageError if no types within the room are fast enough."""
        wanted = config.tokens_per_second
        if wanted is None:
            return cls("")
        from bitsmith.pipeline.token_time import MARGIN, token_time

        found, said = token_time(room.open, config, report), f"--tokens-per-second={wanted:g}"
        units = room.open.units
        fastest = best(units, found.units, room.nbytes)
        rate = found.rate(fastest)
        if rate < MARGIN * wanted:
            raise UsageError(
                f"{said}: the fastest types within the budget reach about {_rounded(rate / MARGIN)} on this machine "
                f"with {_threads(found.threads)}; give at most that, or more threads."
            )
        return cls(said, wanted, found)

    def best(self, units: Sequence[Unit], costs: Sequence[np.ndarray], nbytes: int) -> list[int]:
        """See `search.best`. Raises UsageError if no choice keeps both limits."""
        if self.time is None:
            return best(units, costs, nbytes)
        try:
            return best(units, costs, nbytes, Time(self.time.units, self.time.left(self.tokens_per_second)))
        except ValueError as error:
            raise UsageError(f"{self.said}: no choice of types keeps it and the budget; give fewer.") from error

    def told(self, fitted: Fitted, chosen: Sequence[int]) -> Fitted:
        """The result, with the speed that is expected."""
        if self.time is None:
            return fitted
        note = (
            f"expected speed: {_rounded(self.time.rate(chosen))} tokens a second on this machine with "
            f"{_threads(self.time.threads)} (generation with a short context, as `bitsmith bench` measures it)"
        )
        return replace(fitted, notes=(*fitted.notes, Words(note)))


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


class Room:
    """A model with open types, beside a budget."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        config: QuantizeConfig,
        planned: Planned,
        budget: Budget,
        prepared: Prepared | None,
    ) -> None:
        """prepared: the calibration; None without one"""
        self._checkpoint, self._target, self._planned, self.budget = checkpoint, target, planned, budget
        self.config = named(config, checkpoint, target)
        grouped = target.container not in ("gguf", "native")
        options = PlanOptions(
            rules=tuple(config.rules),
            keep=tuple(config.keep) if grouped else (),
            group_size=config.group_size if grouped else None,
            symmetric=config.symmetric if grouped else None,
            pre=config.pre,
            requantize=config.requantize,
            filename="plan.gguf",
            calibration=None if prepared is None else prepared.record,
        )
        if config.pure:
            raise UsageError(f"--pure gives all matrices one type, and {budget.said} gives each its own; give one.")
        speed, weighted = config.tokens_per_second is not None, None if prepared is None else _weighted(prepared)
        self.open = Allocatable(checkpoint, target, options, for_speed=speed, weighted=weighted)
        if not self.open.units:
            raise UsageError(
                f"{budget.said}: no matrix of {checkpoint.name} has more than one type that fits its rows in "
                f"{target.container}, so there is nothing to choose; give --to alone."
            )
        self.smallest_units = smallest(self.open.units)
        self.whole = self._over_whole()
        self.smallest_plan = self.planned([0] * len(self.open.units))
        self.least = budget.over(self.smallest_plan)

    def within(self, budget: Budget) -> Room:
        """The same model beside another budget."""
        found = copy(self)
        found.budget, found.least = budget, budget.over(self.smallest_plan)
        found.whole = found._over_whole()
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of units that the budget has room for, if headers take what they take with the smallest types."""
        return min(self.smallest_units - self.least, largest(self.open.units))

    @property
    def widest_choice(self) -> list[int]:
        """The largest types of all units."""
        return [len(unit.choices) - 1 for unit in self.open.units]

    def _over_whole(self) -> int:
        """By how many bytes the largest types are over the budget, or what stands for them."""
        self._stands_in = False
        try:
            return self.over(self.widest_choice)
        except UnsupportedError:
            self._stands_in = True
        try:
            return self.budget.over(self._planned(*self._floats()))
        except BitsmithError:  # a rule names a type of the container
            return 1

    def over(self, chosen: Sequence[int]) -> int:
        """By how many bytes the plan of these types is over the budget."""
        return self.budget.over(self.planned(chosen))

    def widest(self) -> Fitted:
        """All units in their largest types; a folder of floats, where the container holds codes alone."""
        if self._stands_in:
            note = (
                f"{self.budget.said} leaves room for all weights in {WIDEST:g} bits, and {self._target.container} "
                "holds codes: this is native/bf16, a folder as the original's, which the same runtimes load"
            )
            target, config = self._floats()
            told = about(config, self._checkpoint, self.budget)
            file = RecipeFile(str(target), tuple(config.rules), about=told) if config.recipe is not None else None
            return Fitted(target, config, (Words(note),), file)
        found = self._fitted(self.widest_choice)
        note = f"{self.budget.said} leaves room for more than the largest types ({WIDEST:g} bits); they are used"
        return replace(found, notes=(Words(note),))

    def _floats(self) -> tuple[Target, QuantizeConfig]:
        """What stands for the largest types of a container that holds codes alone."""
        return Target("native", "bf16"), replace(self.config, keep=())

    def done(self, chosen: Sequence[int], expected: float) -> Fitted:
        """The result, with what it is expected to lose."""
        found = self._fitted(chosen, {_EXPECTED: float(f"{expected:.3g}")})
        note = (
            f"types were chosen tensor by tensor; expected loss: {expected:.4g} nats a token (mean KLD from the "
            "original, on text of the kind it was measured on)"
        )
        return replace(found, notes=(Words(note),), expected=expected)

    def _fitted(self, chosen: Sequence[int], further: dict[str, object] | None = None) -> Fitted:
        config = self._with(chosen)
        told = {**about(self.config, self._checkpoint, self.budget), **(further or {})}
        file = RecipeFile(
            str(self._target), tuple(config.rules), config.group_size, config.symmetric, told, tuple(config.keep)
        )
        return Fitted(self._target, config, (), file if config.recipe is not None else None)

    def _with(self, chosen: Sequence[int]) -> QuantizeConfig:
        units = self.open.units
        rules = rules_of(unit.choices[at] for unit, at in zip(units, chosen, strict=True))
        return replace(self.config, rules=(*self.config.rules, *rules))

    def planned(self, chosen: Sequence[int]) -> Quantized:
        """The exact plan of these types."""
        return self._planned(self._target, self._with(chosen))


def _weighted(prepared: Prepared) -> Callable[[str], bool] | None:
    """Whether a matrix has importance in a file, by GGUF name; None for a text, which all matrices see."""
    ready = prepared.ready
    return None if ready is None else lambda name: ready.of(name) is not None


def resources_of(config: QuantizeConfig, device: str) -> Resources:
    """Limits of the run."""
    return Resources(config.memory_bytes, config.worker_threads, device)


def as_costs(values: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Numbers of a JSON file as float64 [choices] of each unit."""
    return [np.array(each, np.float64) for each in values]


def write_recipe(file: RecipeFile, path: str | Path, *, force: bool) -> Path:
    """Write a recipe file in one step. Raises UsageError if it exists, FileError if it cannot be written."""
    from bitsmith.containers.destination import Destination
    from bitsmith.containers.layout import FileLayout
    from bitsmith.containers.output import OutputFiles
    from bitsmith.containers.reservation import Reservation

    place = followed(Path(path).expanduser(), force=force)
    data = file.text().encode()
    if place.is_file() and place.read_bytes() == data:
        return place  # an earlier start of the same run has written it
    layout = FileLayout(place.name, data, (), len(data))
    wanted = Destination(place, [layout], option="--recipe")
    with Reservation([wanted], force=force) as reservation, OutputFiles(wanted, reservation) as output:
        output.commit([layout])
    return place

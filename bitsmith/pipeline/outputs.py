"""The outputs of a run: the path, the tensor types, the method and the expected cost of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.calibration.cost import Cost, calibration_cost
from bitsmith.calibration.method import Method, default_method
from bitsmith.containers import module_containers
from bitsmith.containers.destination import check_destination
from bitsmith.errors import UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.estimate import expected_seconds
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.plan import Assignment, Plan
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import PlanOptions, Recipe
from bitsmith.recipe.target import Target
from bitsmith.system.sizes import parse_size

if TYPE_CHECKING:
    from bitsmith.calibration.run import Prepared


@dataclass(frozen=True)
class Output:
    """One output of a run.

    path: the file or the folder
    device: the device of the calibration
    warnings: warnings of the calibration
    """

    path: Path
    assignment: Assignment
    method: Method
    effort: str
    device: str
    warnings: tuple[str, ...] = ()

    def plan(self, record: CalibrationRecord | None, input_absmax: Mapping[str, float] | None = None) -> Plan:
        """The plan. Its sizes are exact before the calibration pass, and it is final after the pass.

        record: record of the calibration; None without one
        input_absmax: see `Plan.of`
        """
        effort = self.effort if self.method.heeds_effort else ""
        recipe = Recipe(self.assignment.target, self.assignment.options, str(self.method), effort, record, self.device)
        return Plan.of(self.assignment, recipe, input_absmax=input_absmax, warnings=self.warnings)

    def expected(self, threads: int, prepared: Prepared | None) -> Quantized:
        """The expected result, before any weight is read."""
        plan = self.plan(None if prepared is None else prepared.record)
        layouts, as_folder = plan.layouts(), plan.target.is_folder
        files = [layout.filename for layout in layouts]
        folder = self.path if as_folder else self.path.parent
        cost = self._cost(prepared)
        rounding = 0.0 if self.method.needs_text else expected_seconds(plan, threads, importance=prepared is not None)
        return Quantized(
            target=plan.target,
            out=self.path if as_folder else folder / files[0],
            paths=tuple(folder / name for name in [*files, *plan.extras]),
            plan=plan,
            size=plan.size,
            threads=threads,
            method=str(self.method),
            expected_seconds=rounding + cost.seconds,
            calibration=plan.recipe.calibration,
            calibration_memory=cost.memory,
        )

    def check_free(self, *, force: bool) -> None:
        """Raise UsageError or FileError if the output must not or cannot be written, see `check_destination`."""
        plan = self.plan(self.assignment.options.calibration)
        check_destination(
            self.path,
            plan.layouts(),
            extras=plan.extras,
            as_folder=plan.target.is_folder,
            force=force,
            source=plan.checkpoint.source.path,
        )

    def _cost(self, prepared: Prepared | None) -> Cost:
        """Cost of the calibration."""
        if prepared is None or prepared.request is None:
            return Cost(0.0, 0)
        tokens, context = prepared.record.tokens, prepared.record.context
        return calibration_cost(self.assignment.checkpoint.config, self.method, self.effort, tokens, context)


def outputs_of(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    config: QuantizeConfig,
    *,
    effort: str,
    prepared: Prepared | None,
    device: str,
) -> list[Output]:
    """One output per target. Raises UsageError for options that do not fit a target, and errors of the containers."""
    paths = output_paths(checkpoint, targets, config.out)
    found = []
    for target, path in zip(targets, paths, strict=True):
        try:
            assignment = assign(checkpoint, target, _options(target, path, config, prepared))
            method = _method(assignment, config, effort, prepared)
        except UsageError as error:
            if len(targets) == 1:
                raise
            raise error.at(f"--to={quoted(target)}") from error
        warnings = () if prepared is None else prepared.warnings
        found.append(Output(path, assignment, method, effort, device, warnings))
    _check_distinct([str(each.assignment.target) for each in found])
    return found


def _options(target: Target, path: Path, config: QuantizeConfig, prepared: Prepared | None) -> PlanOptions:
    grouped = target.container in module_containers()
    return PlanOptions(
        pure=config.pure,
        rules=tuple(config.rules),
        keep=tuple(config.keep) if grouped else (),
        group_size=config.group_size if grouped else None,
        symmetric=config.symmetric if grouped else None,
        pre=config.pre,
        max_shard_bytes=None if config.max_shard_size is None else parse_size(config.max_shard_size),
        requantize=config.requantize,
        filename=path.name,
        calibration=None if prepared is None else prepared.record,
    )


def _method(assignment: Assignment, config: QuantizeConfig, effort: str, prepared: Prepared | None) -> Method:
    """The requested method, or the default. Raises UsageError if the calibration does not fit it."""
    if prepared is None:
        return Method("nearest")
    from bitsmith.calibration.measure import check_method

    if config.method is not None:
        method = Method.parse(config.method)
    elif prepared.request is None:  # an importance file holds no activations
        method = Method("nearest")
    else:
        method = default_method(assignment.formats, effort, inputs=assignment.inputs)
    check_method(assignment, prepared, method)
    return method


def check_grouping(targets: Sequence[Target], config: QuantizeConfig) -> None:
    """Raise UsageError for options of linear layers if no target has such a container."""
    *others, last = module_containers()
    grouped = f"{', '.join(others)} and {last}"
    words = {"--keep": config.keep, "--group-size": config.group_size, "--sym and --asym": config.symmetric}
    given = [word for word, value in words.items() if value not in ((), [], None)]
    if given and all(target.container not in (*others, last) for target in targets):
        raise UsageError(
            f"{given[0]} is for {grouped}; for {targets[0].container} give another --to, or --rule='REGEX=f16'."
        )


def _check_distinct(targets: Sequence[str]) -> None:
    """Raise UsageError if two targets are the same, even with different spellings."""
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise UsageError(f"--to names {twice} twice; give every target once.")


def output_paths(checkpoint: Checkpoint, targets: Sequence[Target], out: str | Path | None) -> list[Path]:
    """The path of every target. For one target, `out` is the output itself; for several, it is their folder."""
    usual = [Path(_usual_name(checkpoint, target)) for target in targets]
    if len(targets) == 1:
        return [_output_path(usual[0], targets[0], out)]
    if out is None:
        return usual
    if Path(out).is_file():
        raise UsageError(f"--out={quoted(out)}: several targets need a folder, but this is a file; give a folder.")
    return [Path(out) / path for path in usual]


def _usual_name(checkpoint: Checkpoint, target: Target) -> str:
    if target.is_folder:
        return f"{checkpoint.name}-{target.container}-{target.name}"
    return f"{checkpoint.name}-{target.name.upper()}.gguf"


def _output_path(usual: Path, target: Target, out: str | Path | None) -> Path:
    if out is None:
        return usual
    path = Path(out)
    return path / usual if not target.is_folder and path.is_dir() else path

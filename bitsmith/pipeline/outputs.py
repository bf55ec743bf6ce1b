"""The outputs of a run: the path, the tensor types, the method and the expected cost of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.calibration.cost import LONG_SECONDS, Cost, calibration_cost, training_cost
from bitsmith.calibration.method import FINE_BITS, Method, default_method
from bitsmith.calibration.search_time import search_seconds
from bitsmith.calibration.work import calibrates_embedding, embedding_format
from bitsmith.containers import module_containers
from bitsmith.containers.destination import Destination, followed
from bitsmith.errors import BitsmithError, UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.naming import output_stem
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.estimate import expected_seconds
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.needs import needing_importance
from bitsmith.recipe.plan import Assignment, Plan
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import PlanOptions, Recipe
from bitsmith.recipe.target import Target
from bitsmith.system.sizes import parse_size

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd
    from bitsmith.calibration.importance import Importance
    from bitsmith.calibration.run import Prepared


@dataclass(frozen=True)
class Output:
    """One output of a run.

    path: the file or the folder, with links followed
    link: the link that the user named, if it is one
    training: how the whole model is trained after its blocks were rounded; None: not at all
    teacher: the model whose predictions are learned then; None: the original
    start: a file that holds the codes which are trained; None: `method` chooses them
    prepared: the calibration; None without one
    device: the device of the calibration
    memory: bytes that hidden states may take in memory; None: half of what is free
    warnings: warnings of the calibration
    """

    path: Path
    assignment: Assignment
    method: Method
    effort: str
    prepared: Prepared | None = None
    device: str = "cpu"
    memory: int | None = None
    warnings: tuple[str, ...] = ()
    link: Path | None = None
    training: EndToEnd | None = None
    teacher: Checkpoint | None = None
    start: Checkpoint | None = None

    def plan(self, record: CalibrationRecord | None, input_absmax: Mapping[str, float] | None = None) -> Plan:
        """The plan. Its sizes are exact before the calibration pass, and it is final after the pass.

        record: record of the calibration; None without one
        input_absmax: see `Plan.of`
        """
        effort = self.effort if self.method.heeds_effort else ""
        recipe = Recipe(
            self.assignment.target,
            self.assignment.options,
            str(self.method),
            effort,
            record,
            self.device,
            self.assignment.command,
            self.assignment.checkpoint.name,
            self.assignment.origin,
            covers=self._covers,
            merged=self.assignment.checkpoint.merged,
            training={} if self.training is None else self.training.to_dict(),
        )
        return Plan.of(self.assignment, recipe, input_absmax=input_absmax, warnings=self.warnings)

    @property
    def _covers(self) -> bool:
        """Whether a calibration on text counts the tokens of experts."""
        if self.prepared is None or self.prepared.request is None:
            return False
        return self.assignment.checkpoint.config.experts is not None

    def expected(self, threads: int) -> Quantized:
        """The expected result, before any weight is read. Raises as the census of the assignment."""
        self.assignment.census  # noqa: B018 - raises where a weight would be lost
        found = self.planned()
        plan = found.plan
        cost = self._cost(self.method, self.effort, threads)
        weighted = self.prepared is not None
        seconds = cost.seconds
        if not self.method.needs_text:
            seconds += expected_seconds(plan, threads, importance=weighted)
        fast = None
        if seconds > LONG_SECONDS and self.method.needs_text and not self.method.transform:
            fast = self._cost(Method("nearest"), "fast", threads).seconds
            fast += expected_seconds(plan, threads, importance=weighted)
        return replace(
            found,
            threads=threads,
            expected_seconds=seconds,
            fast_seconds=fast if fast is not None and fast < seconds / 2 else None,
            calibration_memory=cost.memory,
            calibration_disk=cost.disk,
            kept_disk=self._kept_disk,
            calibration_products=cost.products,
            products_per_second=cost.rate,
        )

    def planned(self) -> Quantized:
        """The same without expected times and memory, which take time to find."""
        plan = self.plan(None if self.prepared is None else self.prepared.record)
        as_folder = plan.target.is_folder
        files = [layout.filename for layout in plan.layouts()]
        folder = self.path if as_folder else self.path.parent
        return Quantized(
            target=plan.target,
            out=self.path if as_folder else folder / files[0],
            paths=tuple(folder / name for name in [*files, *plan.extras]),
            plan=plan,
            size=plan.size,
            threads=1,
            method=str(self.method) if self.start is None else f"the codes of {self.start.name}",
            expected_seconds=0.0,
            calibration=plan.recipe.calibration,
        )

    def warned(self, further: Sequence[str]) -> Output:
        """The same with further warnings."""
        return replace(self, warnings=(*further, *self.warnings))

    def destination(self) -> Destination:
        """Where the output goes, with its exact sizes. Raises UsageError for several files behind one link."""
        found = self.plan(self.assignment.options.calibration).destination(self.path)
        if self.link is not None and not found.as_folder and len(found.layouts) > 1:
            raise UsageError(
                f"{self.link} is a link to one file, but the output is {len(found.layouts)} files; choose another "
                "--out."
            )
        return found

    @property
    def _kept_disk(self) -> int:
        """About how many bytes of state the run keeps beside the output: hidden states, and what training needs."""
        if self.prepared is None or self.prepared.request is None:
            return 0
        config, tokens = self.assignment.checkpoint.config, self.prepared.record.tokens
        buffers = self.method.hidden_state_buffers(self.effort) if self.method.needs_text else 1
        size = 4 * buffers * tokens * config.hidden
        if self.training is not None:
            from bitsmith.calibration.distilled import kept_bytes

            rounded = sum(each.info.parameters for each in self.assignment.tensors if each.format is not None)
            size += 5 * rounded + kept_bytes(self.training.tokens, config.hidden)  # float32 weights and codes
        return size

    def rounds_embedding(self, method: Method) -> bool:
        """Whether a method rounds the embedding of this output by its inputs."""
        return calibrates_embedding(embedding_format(self.assignment.tensors), method)

    def calibration_cost(self, method: Method, effort: str, threads: int, *, table: bool) -> Cost:
        """Cost of the calibration alone; nothing without a text. table: whether the embedding is rounded too"""
        if self.prepared is None or self.prepared.request is None:
            return Cost(0.0, 0)
        record, config = self.prepared.record, self.assignment.checkpoint.config
        fine = all(format.bits >= FINE_BITS for format in self.assignment.formats)
        cost = calibration_cost(config, method, effort, record, fine=fine, table=table, memory=self.memory)
        searched = search_seconds(self.assignment.tensors, method, effort, threads)
        return replace(cost, seconds=cost.seconds + searched)

    def _cost(self, method: Method, effort: str, threads: int) -> Cost:
        """Cost of the calibration with a method, and of the training after it."""
        cost = self.calibration_cost(method, effort, threads, table=self.rounds_embedding(method))
        if self.prepared is None or self.prepared.request is None or self.training is None or method != self.method:
            return cost
        taught = (self.assignment.checkpoint if self.teacher is None else self.teacher).config
        context = self.prepared.record.context
        further = training_cost(self.assignment.checkpoint.config, self.training, context, teacher=taught)
        seconds = further.seconds + (cost.seconds if self.start is None else 0.0)
        return replace(cost, seconds=seconds, memory=cost.memory + further.memory)


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
    for target, given in zip(targets, paths, strict=True):
        path = followed(given, force=config.force or config.dry_run)
        try:
            assignment, own = assign(checkpoint, target, _options(target, path, config, prepared)), prepared
            if own is not None and not assignment.formats:
                assignment, own = assign(checkpoint, target, _options(target, path, config, None)), None
            method = _method(assignment, config, effort, own)
        except UsageError as error:
            if len(targets) == 1:
                raise
            raise error.at(f"--to={quoted(target)}") from error
        warnings = (*_of_calibration(assignment, own, method), *_unused(assignment, config, method))
        link = given if path != given else None
        found.append(Output(path, assignment, method, effort, own, device, config.memory_bytes, warnings, link))
    _check_distinct([str(each.assignment.target) for each in found])
    return found


def with_importance(
    checkpoint: Checkpoint, targets: Sequence[Target], config: QuantizeConfig
) -> tuple[QuantizeConfig, dict[str, tuple[str, ...]]]:
    """The options with the built-in text as calibration, where a target needs importance and no text was given.

    Returns also the notes on it, by target.
    """
    if config.calibration_sources:
        return config, {}
    notes: dict[str, tuple[str, ...]] = {}
    for target in targets:
        try:
            names = needing_importance(assign(checkpoint, target, _options(target, Path("plan"), config, None)))
        except BitsmithError:
            continue  # planning says why
        if names:
            notes[str(target)] = (
                f"{target.name} needs importance: with so few bits, columns that matter must lose less than others. "
                "No `--calibration` was given, so the built-in text serves. A text of your own kind, or `--calibration "
                "self`, can halve the loss.",
            )
    if not notes:
        return config, {}
    for name in {str(target) for target in targets} - set(notes):
        notes[name] = (f"{next(iter(notes))} needs importance, so this output is calibrated on the built-in text too.",)
    return replace(config, calibration="default"), notes


def rounds_nothing(checkpoint: Checkpoint, target: Target, config: QuantizeConfig) -> bool:
    """Whether a target stores every tensor as floats, so that there is nothing to calibrate.

    False for a target that cannot be planned without a calibration, or not at all; planning says why.
    """
    try:
        return not assign(checkpoint, target, _options(target, Path("plan"), config, None)).formats
    except BitsmithError:
        return False


def _of_calibration(assignment: Assignment, prepared: Prepared | None, method: Method) -> Iterator[str]:
    """Warnings of the calibration for one output."""
    if prepared is None:
        return
    yield from prepared.warnings
    tokens = prepared.record.tokens
    widest = max((each.info.shape[-1] for each in assignment.tensors if each.format is not None), default=0)
    if method.row.needs_text and tokens < widest:
        yield (
            f"{tokens:,} tokens are fewer than the {widest:,} columns of the widest matrix: codes fit this text by "
            "chance, so the error on it is too low; with more text the file loses less"
        )
    if prepared.ready is not None:
        _check_needs(assignment, prepared.ready)
        yield from prepared.ready.without(each for each in assignment.tensors if each.format is not None)


def _check_needs(assignment: Assignment, importance: Importance) -> None:
    """Raise UsageError if an importance file lacks a matrix whose type needs it."""
    from bitsmith.calibration.work import own_name

    needy = set(needing_importance(assignment))
    missing = [
        each.info.name
        for each in assignment.tensors
        if each.info.name in needy and importance.of(own_name(each)) is None
    ]
    if missing:
        raise UsageError(
            f"{importance.record.source} has no entry for {missing[0]} and {len(missing) - 1} more, whose types in "
            f"{assignment.target.name} need importance: with so few bits, columns that matter must lose less than the "
            "others. Make a file of the whole model with `bitsmith imatrix`, or give a text."
        )


def _unused(assignment: Assignment, config: QuantizeConfig, method: Method) -> Iterator[str]:
    """Warnings about options that change nothing."""
    if not assignment.formats:
        if config.calibration_sources and not assignment.target.is_mmproj:
            yield f"{assignment.target} rounds no tensor, so there is nothing to calibrate: the calibration is left out"
    elif config.effort is not None and config.method is not None and not method.heeds_effort:
        yield f"--effort={config.effort} changes nothing with --method={method}"


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
    elif prepared.request is None and config.effort is None:  # an importance file holds no activations
        method = Method("nearest")
    else:
        method = default_method(assignment.formats, effort, inputs=assignment.inputs)
    if config.method is None and method.needs_text and prepared.request is None:
        raise UsageError(
            f"--effort={effort} chooses --method={method} here, which needs a text to run the model on, but "
            f"{prepared.record.source} is an importance file; leave out --effort, or give a text."
        )
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
            f"{given[0]} is for {grouped}; the types of {targets[0].container} are fixed, so leave it out, or give "
            "another --to."
        )


def doubly_quantized(targets: Sequence[Target]) -> list[Target]:
    """The targets of --double-quant. Raises UsageError if none has a name with doubly quantized scales."""
    known = module_containers()
    found = []
    for target in targets:
        base, _, rest = target.name.partition("-")
        able = target.container in known and f"{base}-dq" in known[target.container].schemes
        doubled = f"{base}-dq" + (f"-{rest}" if rest else "")
        found.append(Target(target.container, doubled) if able and not f"{rest}-".startswith("dq-") else target)
    if found == list(targets) and not any("-dq" in target.name for target in found):
        raise UsageError("--double-quant is for bnb/nf4 and bnb/fp4; leave it out, or give one of them to --to.")
    return found


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
    name = output_stem(checkpoint.name)
    if target.is_folder:
        return f"{name}-{target.container}-{target.name}"
    return target.gguf_name(name)


def _output_path(usual: Path, target: Target, out: str | Path | None) -> Path:
    if out is None:
        return usual
    path = Path(out)
    return path / usual if not target.is_folder and path.is_dir() else path

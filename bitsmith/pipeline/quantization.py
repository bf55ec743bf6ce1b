"""`quantize`: from a model's name to finished files, or to their plans."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.calibration.method import MAX_EFFORT
from bitsmith.calibration.resources import Resources
from bitsmith.containers.destination import check_names, folder_for
from bitsmith.containers.reservation import Reservation
from bitsmith.containers.sources import SourceFiles, files_of
from bitsmith.errors import UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.course import Course, naming_step, with_corrections
from bitsmith.pipeline.estimate import with_long_note
from bitsmith.pipeline.outputs import (
    Output,
    check_grouping,
    doubly_quantized,
    outputs_of,
    rounds_nothing,
    with_importance,
)
from bitsmith.pipeline.phases import phases_of
from bitsmith.pipeline.preflight import check, need_of, refusal, with_needs, with_warning
from bitsmith.pipeline.recipes import AppliedRecipe
from bitsmith.pipeline.result import Quantized
from bitsmith.pipeline.spread import Spread, spread_of
from bitsmith.recipe.target import Target
from bitsmith.scale.executors import Submitted
from bitsmith.system.options import check_arguments, check_words, with_signature
from bitsmith.system.progress import Report, silent

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd
    from bitsmith.calibration.need import Need
    from bitsmith.calibration.run import Prepared
    from bitsmith.pipeline.keeping import Kept
    from bitsmith.pipeline.words import QuantizeWords


def quantize(
    model: str | Path,
    *,
    to: str | None = None,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    **words: Unpack[QuantizeWords],
) -> Quantized:
    """Quantize `model` to `to`. The other keywords are the options of `bitsmith quantize`.

    `bitsmith.QuantizeConfig` describes them.

    model: a folder, a file, a hub id or "reference"
    to: "CONTAINER/FORMAT"; a name alone means gguf/NAME. With a budget or a recipe it may be left out, or name a
        container alone
    on_plan: called with the plan before any weight is read
    Everything that can be checked is checked before `on_plan` is called. Raises UsageError for a wrong call, other
    BitsmithErrors for bad data. After an error the output does not exist.
    """
    check_words("quantize", QuantizeConfig, words, further=("to", "report", "on_plan"))
    check_arguments(quantize, {"model": model, "to": to})
    wanted = [] if to is None else [to]
    return quantize_each(model, wanted, QuantizeConfig(**words), report=report, on_plan=on_plan)[0]


with_signature(quantize, QuantizeConfig)


def quantize_each(
    model: str | Path,
    to: Sequence[str],
    config: QuantizeConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    on_done: Callable[[Quantized], None] | None = None,
) -> list[Quantized]:
    """Quantize `model` to several targets, one after the other, with one calibration for all; see `quantize`.

    on_plan: called with the plan of every output, before any weight is read
    on_done: called with every finished output
    All outputs are checked before the first one is made. If an output fails, the outputs before it stay.
    """
    check_arguments(quantize_each, {"model": model, "to": to})
    recipe = _recipe_of(config)
    to, config = (to, config) if recipe is None else recipe.applied(to, config)
    targets = None if config.has_budget else _targets(to, config)
    checkpoint = open_checkpoint(model, revision=config.revision)
    targets = _budget_targets(to, config, checkpoint) if targets is None else targets
    return _quantized(checkpoint, targets, config, recipe=recipe, report=report, on_plan=on_plan, on_done=on_done)


def quantize_checkpoint(
    checkpoint: Checkpoint,
    to: Sequence[str],
    config: QuantizeConfig,
    *,
    training: Training | None = None,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> list[Quantized]:
    """The same as `quantize_each`, of a model that is open.

    training: how the whole model is trained after its blocks were rounded; None: not at all
    """
    recipe = _recipe_of(config)
    to, config = (to, config) if recipe is None else recipe.applied(to, config)
    targets = _budget_targets(to, config, checkpoint) if config.has_budget else _targets(to, config)
    return _quantized(checkpoint, targets, config, training=training, recipe=recipe, report=report, on_plan=on_plan)


@dataclass(frozen=True)
class Training:
    """How the whole model is trained after its blocks were rounded.

    teacher: who predicts; None: the original
    start: a file that holds the codes already; None: they are made
    """

    how: EndToEnd
    teacher: Checkpoint | None = None
    start: Checkpoint | None = None


def _recipe_of(config: QuantizeConfig) -> AppliedRecipe | None:
    """The recipe whose types the run takes; None without one to read."""
    if config.recipe is None or config.has_budget:
        return None
    return AppliedRecipe.read(Path(config.recipe).expanduser())


def _budget_targets(to: Sequence[str], config: QuantizeConfig, checkpoint: Checkpoint) -> list[Target]:
    """The one target of a run with a budget."""
    from bitsmith.pipeline.fitting import open_target

    targets = [open_target(to, config, checkpoint)]
    targets = doubly_quantized(targets) if config.double_quant else targets
    check_grouping(targets, config)
    return targets


def _targets(to: Sequence[str], config: QuantizeConfig) -> list[Target]:
    """The targets of --to, checked against the options."""
    targets = [Target.parse(each) for each in to]
    if not targets:
        raise UsageError("--to is missing; give for instance --to=q4_k_m, or a budget: --bits=4.25.")
    targets = doubly_quantized(targets) if config.double_quant else targets
    check_grouping(targets, config)
    return targets


def _quantized(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    config: QuantizeConfig,
    *,
    training: Training | None = None,
    recipe: AppliedRecipe | None = None,
    report: Report,
    on_plan: Callable[[Quantized], None] | None,
    on_done: Callable[[Quantized], None] | None = None,
) -> list[Quantized]:
    spread = spread_of(config, checkpoint, targets, ("quantize",) if training is None else ("tune", "qat"))
    config, needed = with_importance(checkpoint, targets, config)
    effort, threads = config.effort or "normal", config.worker_threads
    prepared, device = calibration_of(checkpoint, targets, config, report)
    told: tuple[str, ...] = ()
    loss: float | None = None
    if config.has_budget:
        targets, config, told, loss = _chosen(checkpoint, targets[0], config, (effort, prepared, device), report)
        prepared = None if rounds_nothing(checkpoint, targets[0], config) else prepared
    with nullcontext() if recipe is None else recipe.named():
        outputs = outputs_of(checkpoint, targets, config, effort=effort, prepared=prepared, device=device)
    if recipe is not None:
        outputs = [each.warned(recipe.left_out(each.assignment)) for each in outputs]
    outputs = [each.warned(needed.get(str(each.assignment.target), ())) for each in outputs]
    outputs = _with_training(outputs, training, effort)
    expected = with_long_note([output.expected(threads) for output in outputs])
    need = need_of(outputs, threads)
    expected = [replace(each, told=told, expected_kld=loss) for each in with_needs(expected, need)]
    _log_plans(expected)
    if not config.force and not config.dry_run:
        check(outputs, need)

    def announce(notes: tuple[str, ...] = ()) -> None:
        for at, each in enumerate(expected):
            if on_plan is not None:
                on_plan(each if at else replace(each, told=(*each.told, *notes)))

    if config.dry_run:
        for output in outputs:
            output.destination()  # raises where it cannot be written
        expected = with_warning(expected, outputs, need)
        announce()
        return expected
    run = _Run(checkpoint, outputs, expected, prepared, config, need, spread)
    return run.make(report, announce, on_done)


@dataclass(frozen=True)
class _Run:
    """A run whose plan is made."""

    checkpoint: Checkpoint
    outputs: Sequence[Output]
    expected: Sequence[Quantized]
    prepared: Prepared | None
    config: QuantizeConfig
    need: Need
    spread: Spread | None

    def make(
        self,
        report: Report,
        announce: Callable[[tuple[str, ...]], None],
        on_done: Callable[[Quantized], None] | None,
    ) -> list[Quantized]:
        """Make all outputs, or hand the work over. announce: called with notes once the outputs' places are claimed"""
        outputs, config = self.outputs, self.config
        folder = Path(config.out) if len(outputs) > 1 and config.out is not None else None
        sources = [*self.checkpoint.files, *files_of(*config.calibration_sources)]
        from bitsmith.pipeline.keeping import Kept

        others = [model for each in outputs for model in (each.teacher, each.start) if model is not None]
        teachers = [path for model in others for path in model.files]
        kept = Kept.of(outputs, [*sources, *teachers], fresh=config.fresh, further={"seed": config.seed})
        try:
            with (
                folder_for(folder),
                Reservation(
                    kept.destinations, sources=sources, force=config.force, finished=kept.is_finished
                ) as reservation,
                kept.opened(),
            ):
                announce(kept.notes)
                return self._made(kept, reservation, report, on_done)
        except Submitted as submitted:
            return [replace(each, submitted=submitted.script) for each in self.expected]

    def _made(
        self,
        kept: Kept,
        reservation: Reservation,
        report: Report,
        on_done: Callable[[Quantized], None] | None,
    ) -> list[Quantized]:
        from bitsmith.pipeline.making import Work, make_all

        config, prepared, spread, threads = self.config, self.prepared, self.spread, self.config.worker_threads
        if prepared is not None:
            prepared = prepared.read(threads=threads, work=kept.folders[0], report=report)
        resources = Resources(config.memory_bytes, threads, self.outputs[0].device)
        work = Work(prepared, resources, threads, reservation, kept, spread)
        phases = phases_of(self.outputs, threads) if spread is None else ()
        course = Course(report, self.need, partial(refusal, self.outputs), phases=phases, force=config.force)
        with naming_step(course):
            made = make_all(self.outputs, self.expected, work, report=course, on_done=on_done)
        if spread is not None:
            spread.remove(kept.folders)
        return with_corrections(made, course)


def _with_training(outputs: list[Output], training: Training | None, effort: str) -> list[Output]:
    """The outputs with the training that the run asks for: its own, or that of the most effort."""
    if training is not None:
        return [_trained(output, training) for output in outputs]
    return [_with_most_effort(output) for output in outputs] if effort == MAX_EFFORT else outputs


def _chosen(
    checkpoint: Checkpoint,
    target: Target,
    config: QuantizeConfig,
    prepared: tuple[str, Prepared | None, str],
    report: Report,
) -> tuple[list[Target], QuantizeConfig, tuple[str, ...], float | None]:
    """Targets and options with types for the budget, notes, and the expected loss, see `fitting.Fitted`.

    The recipe file is written, if there is to be one.

    prepared: effort, calibration and its device
    """
    from bitsmith.pipeline.fitting import check_recipe, fitted, named, write_recipe

    effort, calibration, device = prepared
    config = named(config, checkpoint, target)
    if not config.dry_run:
        first = outputs_of(checkpoint, [target], config, effort=effort, prepared=calibration, device=device)[0]
        place = first.destination()
        if not place.names.work.exists():  # an interrupted run of this output may go on
            check_names(place, SourceFiles(checkpoint.files), force=config.force)
    check_recipe(config, checkpoint, target.container)

    def planned(target: Target, config: QuantizeConfig) -> Quantized:
        outputs = outputs_of(checkpoint, [target], config, effort=effort, prepared=calibration, device=device)
        return outputs[0].planned()

    found = fitted(checkpoint, target, config, planned, prepared=calibration, report=report)
    notes = found.notes
    if found.file is not None and config.recipe is not None:
        path = write_recipe(found.file, config.recipe, force=config.force)
        notes = (*notes, f"wrote {path}")
    return [found.target], found.config, notes, found.expected


def _with_most_effort(output: Output) -> Output:
    """The output with its scales trained after the rounding, where that is possible; else with a warning."""
    why = ""
    if not output.method.needs_text:
        why = f"--method={output.method} does not run the model"
    elif output.method.transform:
        why = f"--method={output.method} rescales columns"
    elif output.assignment.inputs:
        why = f"{output.assignment.target} rounds the inputs of its products too, which training does not simulate"
    if why:
        note = f"--effort=max: the scales of the whole model are not trained, because {why}"
        return replace(output, warnings=(*output.warnings, note)) if output.assignment.formats else output
    from bitsmith.calibration.end_to_end import usual

    return _trained(output, Training(usual("scales")))


def _trained(output: Output, training: Training) -> Output:
    """The output with a training. Raises UsageError where its method does not round block by block."""
    target = output.assignment.target
    if not output.assignment.formats:
        raise UsageError(
            f"--to={quoted(str(target))}: it rounds nothing, so there is nothing to train. Give a format of few bits, "
            "and the original in 16 bits: codes of a source that suit the target are kept as they are."
        )
    if output.assignment.inputs:
        raise UsageError(
            f"--to={quoted(str(target))}: it rounds the inputs of its products too, which training does not simulate; "
            "choose a format of weights alone."
        )
    if not output.method.needs_text or output.method.transform:
        raise UsageError(
            f"--method={output.method}: training goes on from codes that gptq or learned chose; give one of these."
        )
    assert output.prepared is not None
    tokens = output.prepared.trainable(training.how.tokens)
    found = replace(
        output, training=replace(training.how, tokens=tokens), teacher=training.teacher, start=training.start
    )
    if training.start is not None:
        found = found.warned(_of_start(training.start, output))
    fixed = _with_fixed_scales(output) if training.how.depth == "scales" else ""
    if not fixed:
        return found
    return found.warned(
        [f"the scales of {fixed} are not trained, only norms are; `tune qat --train all` trains its codes"]
    )


def _of_start(start: Checkpoint, output: Output) -> list[str]:
    """Warnings of a file that holds the codes already. Raises FileError, UnsupportedError where it does not fit."""
    from bitsmith.calibration.started import check_start
    from bitsmith.calibration.work import linears_of

    assignment = output.assignment
    formats = linears_of(assignment.tensors, assignment.checkpoint.config)
    if check_start(start, assignment.checkpoint, formats):
        return []
    return [f"{start.name} does not say what it was made from; if it was another model, training starts far off"]


def _with_fixed_scales(output: Output) -> str:
    """Names of the formats whose scales training cannot change: 8-bit floats, and one scale for a whole tensor."""
    from bitsmith.calibration.trainable import learned_ranges

    formats = {format.name: format for format in output.assignment.formats}
    fixed = (
        name for name, format in formats.items() if not learned_ranges(format, format.params_layout(1, format.multiple))
    )
    return ", ".join(sorted(fixed))


def _log_plans(expected: Sequence[Quantized]) -> None:
    for each in expected:
        _log.info("plan of %s: %s, %d bytes, about %.0f s", each.target, each.method, each.size, each.expected_seconds)


def calibration_of(
    checkpoint: Checkpoint, targets: Sequence[Target], config: QuantizeConfig, report: Report
) -> tuple[Prepared | None, str]:
    """The calibration that the options ask for, None without one, and the device where the model runs for it."""
    prepared = _prepared(checkpoint, targets, config, report)
    runs = prepared is not None and prepared.request is not None
    return prepared, _device(config.device) if runs or config.device else "cpu"


def _prepared(
    checkpoint: Checkpoint, targets: Sequence[Target], config: QuantizeConfig, report: Report
) -> Prepared | None:
    """The calibration with a checked source; None if none is requested, or if no target rounds anything."""
    sources, tokens, context = config.calibration_sources, config.calibration_tokens, config.calibration_context
    if not sources:
        if tokens is not None or context is not None or config.calibration_all_experts:
            raise UsageError(
                "--calibration-tokens, --calibration-context and --calibration-all-experts say how to calibrate, but "
                "there is no --calibration; "
                "give --calibration=default, or a text."
            )
        return None
    if not config.has_budget and all(rounds_nothing(checkpoint, target, config) for target in targets):
        return None
    from bitsmith.calibration.run import check_importance_file, prepare

    check_importance_file(config)
    return prepare(checkpoint, config, sources, report=report)


def _device(wanted: str | None) -> str:
    """The device of the calibration. Raises UsageError if the machine does not have it."""
    from bitsmith.runtime.torch.device import choose_device

    return choose_device(wanted)

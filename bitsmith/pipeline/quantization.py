"""`quantize`: from a model's name to finished files, or to the plans of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.calibration.cost import Cost, calibration_cost
from bitsmith.containers.destination import check_destination, make_folder
from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.estimate import expected_seconds
from bitsmith.pipeline.executor import execute
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.gguf import plan_gguf
from bitsmith.recipe.hf_containers import plan_hf
from bitsmith.recipe.method import Method, default_method
from bitsmith.recipe.native import plan_native
from bitsmith.recipe.plan import Plan, PlanOptions, Target, parse_size
from bitsmith.system.machine import peak_memory
from bitsmith.system.options import check_words
from bitsmith.system.progress import Progress, Report, silent

if TYPE_CHECKING:
    from bitsmith.calibration.decide import CalibrationPass, Resources
    from bitsmith.calibration.run import Prepared
    from bitsmith.pipeline.words import QuantizeWords

_PLANNERS: dict[str, Callable[[Checkpoint, Target, PlanOptions], Plan]] = {
    "gguf": plan_gguf,
    "native": plan_native,
    "gptq": plan_hf,
    "awq": plan_hf,
    "compressed": plan_hf,
}
_GROUPED = ("gptq", "awq", "compressed")  # containers that --keep, --group-size and --sym are for


def quantize(
    model: str | Path,
    *,
    to: str,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    **words: Unpack[QuantizeWords],
) -> Quantized:
    """Quantize `model` to `to`. The other keywords are the options of `bitsmith quantize`, see `QuantizeConfig`.

    model: a folder, a file, a hub id or "reference"; to: "CONTAINER/FORMAT", a bare name means gguf/NAME
    on_plan: called with the plan before any weight is read
    Everything that cannot work fails before that call. Raises UsageError for a wrong call, other BitsmithErrors
    for bad data; then no new file has the name of the output.
    """
    check_words("quantize", QuantizeConfig, words, further=("to", "report", "on_plan"))
    return quantize_each(model, [to], QuantizeConfig(**words), report=report, on_plan=on_plan)[0]


def quantize_each(
    model: str | Path,
    to: Sequence[str],
    config: QuantizeConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> list[Quantized]:
    """Quantize `model` to several targets, one after the other, calibrating once for all of them; see `quantize`.

    on_plan: called with every plan before any weight is read. All plans are checked before the first file is begun;
    what was finished when a later one fails stays.
    """
    targets = [Target.parse(each) for each in to]
    if not targets:
        raise UsageError("--to is missing; for instance --to q4_k_m.")
    effort, workers, room = config.effort or "normal", config.worker_threads, config.memory_bytes
    _check_grouping(targets, config)
    checkpoint = open_checkpoint(model, revision=config.revision)
    prepared = _prepared(checkpoint, config)
    paths = _output_paths(checkpoint, targets, config.out)
    runs = prepared is not None and prepared.request is not None
    device = _device(config.device) if runs or config.device else "cpu"
    jobs = []
    for target, path in zip(targets, paths, strict=True):
        try:
            jobs.append(_job(checkpoint, target, path, config, effort, prepared, device))
        except UsageError as error:
            raise UsageError(f"--to {target}: {error}" if len(targets) > 1 else str(error)) from error
    planned = [job.result(workers, prepared) for job in jobs]
    _check_distinct([str(each.target) for each in planned])
    if not config.dry_run:
        if len(jobs) > 1 and config.out is not None:
            make_folder(Path(config.out))
        for job in jobs:
            _check_free(job, force=config.force)
    if on_plan is not None:
        for each in planned:
            on_plan(each)
    if config.dry_run:
        return planned
    resources = None
    if prepared is not None:
        from bitsmith.calibration.decide import Resources

        prepared = prepared.read(threads=workers, report=report)
        resources = Resources(room, workers, device)
    return _carried_out(jobs, planned, prepared, resources, workers, config.force, report)


@dataclass(frozen=True)
class _Job:
    """One output, planned. options: without method, calibration and device, which the plan's recipe has"""

    path: Path
    plan: Plan
    options: PlanOptions
    method: Method
    effort: str

    def result(self, threads: int, prepared: Prepared | None) -> Quantized:
        """What would be made."""
        plan, as_folder = self.plan, self.plan.target.is_folder
        files = [layout.filename for layout in plan.layouts(plan.manifest())]
        folder = self.path if as_folder else self.path.parent
        cost = None if prepared is None else _cost(self, prepared)
        rounding = 0.0 if self.method.needs_text else expected_seconds(plan, threads, importance=prepared is not None)
        return Quantized(
            target=plan.target,
            out=self.path if as_folder else folder / files[0],
            paths=tuple(folder / name for name in [*files, *plan.extras]),
            plan=plan,
            size=plan.size,
            threads=threads,
            method=str(self.method),
            expected_seconds=rounding + (0.0 if cost is None else cost.seconds),
            calibration=None if prepared is None else prepared.record,
            calibration_memory=0 if cost is None else cost.memory,
        )


def _carried_out(
    jobs: Sequence[_Job],
    planned: Sequence[Quantized],
    prepared: Prepared | None,
    resources: Resources | None,
    threads: int,
    force: bool,
    report: Report,
) -> list[Quantized]:
    """Every file made, one after the other. The seconds of the shared pass count for the first."""
    started = time.monotonic()
    gathered: CalibrationPass | None = None
    if prepared is not None and resources is not None:
        from bitsmith.calibration import decide

        wanted = [decide.Job(job.plan, job.method, job.effort) for job in jobs]
        gathered = decide.gather(prepared, wanted, resources, report)
    done = []
    for at, (job, result) in enumerate(zip(jobs, planned, strict=True)):
        plan, decision = job.plan, None
        if prepared is not None and resources is not None and gathered is not None:
            known = replace(job.options, calibration=prepared.record)  # the text's hash, where the model wrote it
            this = decide.Job(replace(plan, recipe=known.recipe(plan.target)), job.method, job.effort)
            decision = decide.decide(this, at, prepared, gathered, resources, report)
            plan = decision.plan
        calibrated = None if decision is None else decision.calibrated
        watch = _Watch(report)
        manifest = execute(plan, job.path, threads=threads, calibrated=calibrated, force=force, report=watch)
        now = time.monotonic()
        done.append(
            replace(
                result,
                plan=plan,
                manifest=manifest,
                seconds=now - started,
                verify_seconds=now - watch.verifying,
                verify_cpu_seconds=time.process_time() - watch.worked,
                peak_memory=peak_memory(),
                calibration=None if prepared is None else prepared.record,
                notes=() if decision is None else decision.notes,
            )
        )
        started = now
    return done


class _Watch:
    """Passes reports on, and remembers when the first of the stage "verify" came."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.verifying = self.worked = math.inf  # the clock, and the processor's

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "verify":
            self.verifying = min(self.verifying, time.monotonic())
            self.worked = min(self.worked, time.process_time())
        self._report(progress)


def _job(
    checkpoint: Checkpoint,
    target: Target,
    path: Path,
    choices: QuantizeConfig,
    effort: str,
    prepared: Prepared | None,
    device: str,
) -> _Job:
    """The plan of one output; its method is known once its formats are."""
    grouped = target.container in _GROUPED
    options = PlanOptions(
        pure=choices.pure,
        rules=tuple(choices.rules),
        keep=tuple(choices.keep) if grouped else (),
        group_size=choices.group_size if grouped else None,
        symmetric=choices.symmetric if grouped else None,
        pre=choices.pre,
        max_shard_bytes=None if choices.max_shard_size is None else parse_size(choices.max_shard_size),
        requantize=choices.requantize,
        filename=path.name,
        calibration=None if prepared is None else prepared.record,
    )
    plan = _PLANNERS[target.container](checkpoint, target, options)
    method = _method(plan, choices, effort, prepared)
    heeded = effort if method.heeds_effort else ""
    options = replace(options, method=str(method), effort=heeded, device=device)
    warnings = plan.warnings if prepared is None else (*plan.warnings, *prepared.warnings)
    plan = replace(plan, recipe=options.recipe(plan.target), warnings=warnings)
    return _Job(path, plan, options, method, effort)


def _method(plan: Plan, choices: QuantizeConfig, effort: str, prepared: Prepared | None) -> Method:
    """The method asked for, or the usual one. Raises UsageError where the calibration cannot serve it."""
    if prepared is None:
        return Method("nearest")
    from bitsmith.calibration.decide import check_method

    if choices.method is not None:
        method = Method.parse(choices.method)
    elif prepared.request is None:  # an importance file holds no activations
        method = Method("nearest")
    else:
        formats = [t.format for t in plan.tensors if t.format is not None]
        method = default_method(formats, effort, inputs=[t.inputs for t in plan.tensors if t.inputs is not None])
    check_method(plan, prepared, method)
    return method


def _cost(job: _Job, prepared: Prepared) -> Cost:
    tokens, context = prepared.record.tokens, prepared.record.context
    if prepared.request is None:
        return Cost(0.0, 0)
    return calibration_cost(job.plan.checkpoint.config, job.method, job.effort, tokens, context)


def _check_free(job: _Job, *, force: bool) -> None:
    plan = job.plan
    layouts = plan.layouts(plan.manifest())
    source = plan.checkpoint.source.path
    check_destination(
        job.path, layouts, extras=plan.extras, as_folder=plan.target.is_folder, force=force, source=source
    )


def _check_grouping(targets: Sequence[Target], choices: QuantizeConfig) -> None:
    """Raise UsageError for words that no container of the targets knows."""
    words = {"--keep": choices.keep, "--group-size": choices.group_size, "--sym and --asym": choices.symmetric}
    given = [word for word, value in words.items() if value not in ((), [], None)]
    if given and all(target.container not in _GROUPED for target in targets):
        raise UsageError(
            f"{given[0]} is for gptq, awq and compressed; {targets[0].container} names formats (int4-g64-asym) and has "
            "--rule 'REGEX=f16'."
        )


def _prepared(checkpoint: Checkpoint, choices: QuantizeConfig) -> Prepared | None:
    """The calibration, its input read and checked; None where none was asked for."""
    source, tokens, context = choices.calibration_source, choices.calibration_tokens, choices.calibration_context
    if source is None:
        if tokens is not None or context is not None:
            raise UsageError(
                "--calibration-tokens and --calibration-context say how to calibrate, but there is no --calibration; "
                "give --calibration default, or a text."
            )
        return None
    from bitsmith.calibration.run import prepare

    return prepare(checkpoint, source, tokens=tokens, context=context, seed=choices.seed)


def _device(wanted: str | None) -> str:
    """Where calibration runs. Raises UsageError for a device that is not there."""
    from bitsmith.runtime.torch.device import choose_device

    return choose_device(wanted)


def _output_paths(checkpoint: Checkpoint, targets: Sequence[Target], out: str | Path | None) -> list[Path]:
    """Of every target; `out` names the output itself where there is one target, and a folder where there are more."""
    usual = [Path(_usual_name(checkpoint, target)) for target in targets]
    if len(targets) == 1:
        return [_output_path(usual[0], targets[0], out)]
    if out is None:
        return usual
    if Path(out).is_file():
        raise UsageError(f"--out {out}: several targets need a folder, and this is a file; give a folder's name.")
    return [Path(out) / path for path in usual]


def _check_distinct(targets: Sequence[str]) -> None:
    """Raise UsageError where two of them, under whatever names they were given, are the same."""
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise UsageError(f"--to names {twice} twice; give every target once.")


def _usual_name(checkpoint: Checkpoint, target: Target) -> str:
    if target.is_folder:
        return f"{checkpoint.name}-{target.container}-{target.name}"
    return f"{checkpoint.name}-{target.name.upper()}.gguf"


def _output_path(usual: Path, target: Target, out: str | Path | None) -> Path:
    if out is None:
        return usual
    path = Path(out)
    return path / usual if not target.is_folder and path.is_dir() else path

"""What a calibration decides about plans: one pass over the original model for all of them, then each on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.importance import Importance, from_calibration
from bitsmith.calibration.run import Prepared
from bitsmith.errors import UsageError
from bitsmith.models.arch.groups import linear_groups
from bitsmith.models.arch.names import gguf_name
from bitsmith.pipeline.executor import Calibrated, RoundedRows
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import PRECISIONS
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.recipe.method import Method
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.static_inputs import inputs_wanted, with_inputs
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.calibration.collect import Search
    from bitsmith.calibration.rounding import RoundingReport
    from bitsmith.calibration.stats import Stats
    from bitsmith.calibration.transforms.base import Rescaling

_HEAD = "output"  # rounded behind the blocks


@dataclass(frozen=True)
class Job:
    """A plan and how its codes are to be chosen."""

    plan: Plan
    method: Method
    effort: str = "normal"


@dataclass(frozen=True)
class Resources:
    """What calibrated work may use. memory: bytes for hidden states, None: half of what is there"""

    memory: int | None = None
    threads: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class CalibrationPass:
    """What one pass over the original model gave for all jobs; None and empty where no job needs it.

    rescalings: of each job, by layer
    stats: by linear, as `Calibration` has them
    """

    importance: Importance | None
    rescalings: tuple[Mapping[int, tuple[Rescaling, ...]], ...]
    stats: Mapping[str, Stats] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """How a plan is to be carried out.

    plan: the job's, told the ranges of inputs
    reports: what rounding cost by linear, filled while that happens
    """

    plan: Plan
    calibrated: Calibrated
    reports: dict[str, RoundingReport] = field(default_factory=dict)
    rescalings: Mapping[int, tuple[Rescaling, ...]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of a finished run."""
        from bitsmith.calibration.notes import rescaling_notes, rounding_notes

        outputs = {_own_name(tensor): tensor.info.name for tensor in self.plan.tensors}
        named = {outputs[f"{name}.weight"]: report for name, report in self.reports.items()}
        return (*rescaling_notes(self.rescalings), *rounding_notes(named))


def check_method(plan: Plan, prepared: Prepared, method: Method) -> None:
    """Raise UsageError where a method needs more than the calibration, or the plan, can give."""
    if method.transform == "smoothquant" and not _inputs(plan):
        raise UsageError(
            f"--method {method} makes inputs easier to round, but {plan.target} leaves them alone; it is for "
            "compressed/w8a8 and fp8. For weights alone there is awq."
        )
    if method.needs_text and prepared.request is None:
        raise UsageError(
            f"--method {method} needs a text to run the model on; {prepared.record.source} is an importance file, "
            "without activations. Give --calibration default, or a text."
        )


def gather(prepared: Prepared, jobs: Sequence[Job], resources: Resources, report: Report = silent) -> CalibrationPass:
    """Run the original model once, if any job wants to know of it: importance for the nearest codes, and rescalings.

    GPTQ and learned rounding take their inputs from the quantized prefix instead, see `decide`.
    """
    nothing: tuple[Mapping[int, tuple[Rescaling, ...]], ...] = tuple({} for _ in jobs)
    if prepared.ready is not None:
        return CalibrationPass(prepared.ready, nothing)
    searches = {at: _search(job) for at, job in enumerate(jobs) if job.method.transform}
    if not searches and all(job.method.needs_text and not inputs_wanted(job.plan) for job in jobs):
        return CalibrationPass(None, nothing)
    found = prepared.run(
        searches=tuple(searches.values()),
        memory=resources.memory,
        threads=resources.threads,
        device=resources.device,
        report=report,
    )
    by_job = dict(zip(searches, found.rescalings, strict=True))
    return CalibrationPass(from_calibration(found), tuple(by_job.get(at, {}) for at in range(len(jobs))), found.stats)


def decide(
    job: Job, at: int, prepared: Prepared, gathered: CalibrationPass, resources: Resources, report: Report = silent
) -> Decision:
    """How a job is to be carried out.

    at: its place among the jobs that `gathered` was gathered for
    prepared: with its tokens read, where the method needs text
    """
    importance, rescalings = gathered.importance, gathered.rescalings[at]
    plan = with_inputs(job.plan, _rescaled(gathered.stats, rescalings))
    job = replace(job, plan=plan)
    columns = {} if importance is None else importance.by_output([tensor.info for tensor in plan.tensors])
    if not job.method.needs_text:
        return Decision(plan, Calibrated(importance=columns))
    by_name = {_own_name(tensor): tensor for tensor in plan.tensors}
    formats = _linears(plan)
    moved = _moved(rescalings)
    reports: dict[str, RoundingReport] = {}
    precomputed = {f"{name}.weight" for name in formats} | (moved & by_name.keys())
    decided = _decided(job, prepared, formats, rescalings, reports, resources, report)
    names = frozenset(by_name[name].info.name for name in precomputed)
    return Decision(plan, Calibrated(columns, names, decided), reports, rescalings)


def _decided(
    job: Job,
    prepared: Prepared,
    formats: Mapping[str, Format],
    rescalings: Mapping[int, tuple[Rescaling, ...]],
    reports: dict[str, RoundingReport],
    resources: Resources,
    report: Report,
) -> Iterator[RoundedRows]:
    from bitsmith.calibration.blockwise import BlockwiseTask, round_blocks

    assert prepared.tokens is not None
    outputs = {_own_name(tensor): tensor.info.name for tensor in job.plan.tensors}
    task = BlockwiseTask(
        formats,
        job.method,
        inputs=_inputs(job.plan),
        rescalings=rescalings,
        stored=_stored_norms(job.plan),
        effort=job.effort,
        seed=prepared.tokens.seed,
    )
    found = round_blocks(
        job.plan.checkpoint,
        prepared.tokens,
        task,
        reports,
        memory=resources.memory,
        threads=resources.threads,
        device=resources.device,
        report=report,
    )
    for tensor in found:
        yield RoundedRows(outputs[tensor.name], tensor.start, tensor.weight, tensor.tensor)


def _search(job: Job) -> Search:
    from bitsmith.calibration.collect import Search
    from bitsmith.calibration.transforms import transform_of

    inputs = next(iter(_inputs(job.plan).values()), None)
    return Search(transform_of(job.method.transform, inputs), _linears(job.plan))


def _rescaled(stats: Mapping[str, Stats], rescalings: Mapping[int, tuple[Rescaling, ...]]) -> dict[str, Stats]:
    """Statistics of inputs after rescaling."""
    from bitsmith.calibration.transforms.fold import rescaled_stats

    changed = dict(stats)
    for layer, found in rescalings.items():
        for rescaling in (each for each in found if each.changes):
            names = [f"blk.{layer}.{name}" for name in rescaling.group.linears]
            changed |= {name: rescaled_stats(stats[name], rescaling.scale) for name in names}
    return changed


def _inputs(plan: Plan) -> dict[str, InputRounding]:
    """How inputs are rounded, by GGUF name without ".weight"."""
    return {
        _own_name(tensor).removesuffix(".weight"): tensor.inputs for tensor in plan.tensors if tensor.inputs is not None
    }


def _own_name(tensor: PlannedTensor) -> str:
    return gguf_name(tensor.info.name) or tensor.info.name


def _linears(plan: Plan) -> dict[str, Format]:
    """Formats of the linears that are to be rounded, by GGUF name without ".weight": of all blocks, and of the head."""
    config = plan.checkpoint.config
    linears = {name for group in linear_groups(config) for name in group.linears}
    formats: dict[str, Format] = {}
    for tensor in plan.tensors:
        name = _own_name(tensor).removesuffix(".weight")
        in_block = name.startswith("blk.") and name.split(".")[-1] in linears
        if tensor.format is not None and (in_block or (name == _HEAD and not config.tied)):
            formats[name] = tensor.format
    return formats


def _moved(rescalings: Mapping[int, tuple[Rescaling, ...]]) -> set[str]:
    """GGUF names of all tensors that rescalings change."""
    names = set()
    for layer, found in rescalings.items():
        for rescaling in (each for each in found if each.changes):
            linears = (*rescaling.group.linears, rescaling.group.producer)
            names |= {f"blk.{layer}.{name}.weight" for name in linears}
            names.add(f"blk.{layer}.{rescaling.group.producer}.bias")
    return names


def _stored_norms(plan: Plan) -> dict[str, np.dtype]:
    """The 16-bit types in which the plan stores norms, by name within a block."""
    found = {}
    for tensor in plan.tensors:
        name = _own_name(tensor).removesuffix(".weight").split(".")[-1]
        if name.endswith("_norm") and tensor.info.layout in ("f16", "bf16"):
            found[name] = PRECISIONS[tensor.info.layout]
    return found

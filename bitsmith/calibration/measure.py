"""One pass over the original model for all outputs of a run: importance, ranges of inputs, rescalings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bitsmith.calibration.importance import Importance, from_calibration
from bitsmith.calibration.method import Method
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.run import Prepared
from bitsmith.calibration.transforms import TRANSFORMS
from bitsmith.calibration.work import check_coverage, inputs_of, linears_of
from bitsmith.errors import UsageError
from bitsmith.recipe.coverage import Coverage
from bitsmith.recipe.plan import Assignment
from bitsmith.recipe.static_inputs import inputs_wanted
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.calibration.collect import Search
    from bitsmith.calibration.stats import Stats
    from bitsmith.calibration.transforms.base import Rescaling
    from bitsmith.work.folder import WorkFolder


@dataclass(frozen=True)
class Job:
    """One output's tensors, and how to choose their codes."""

    assignment: Assignment
    method: Method


@dataclass(frozen=True)
class Measured:
    """What the pass measured for one job.

    importance: None if no job needed the pass
    rescalings: by layer
    input_absmax: largest magnitude of each linear's input after rescaling, by GGUF name without ".weight"
    coverage: tokens that each expert saw; None for a model without experts
    """

    importance: Importance | None = None
    rescalings: Mapping[int, tuple[Rescaling, ...]] = field(default_factory=dict)
    input_absmax: Mapping[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None


def check_method(assignment: Assignment, prepared: Prepared, method: Method) -> None:
    """Raise UsageError if the calibration or the output does not fit the method."""
    if method.transform and TRANSFORMS[method.transform].rounded_inputs_only and not assignment.inputs:
        raise UsageError(
            f"--method={method} makes inputs easier to round, but {assignment.target} does not round inputs; use it "
            "with compressed/w8a8 or compressed/fp8. To round weights only, use awq."
        )
    if method.needs_text and prepared.request is None:
        raise UsageError(
            f"--method={method} needs a text to run the model on, but {prepared.record.source} is an importance file "
            "and holds no activations. Give --calibration=default, or a text."
        )


def measure(
    prepared: Prepared,
    jobs: Sequence[Job],
    resources: Resources,
    report: Report = silent,
    *,
    work: WorkFolder | None = None,
) -> tuple[Measured, ...]:
    """Run the original model once, if any job needs it. Returns one result per job.

    It runs twice if outputs have the tensors of gated delta nets in different orders, see `Checkpoint.laid_out`.

    work: where the state of the pass is kept; None: nowhere

    Rounders that need text take their inputs from the rounded blocks instead, see `blockwise`.
    Raises UsageError if the text starves experts that are to be rescaled.
    """
    if prepared.ready is not None:
        return tuple(Measured(prepared.ready.laid_out(job.assignment.checkpoint)) for job in jobs)
    searches = {at: _search(job) for at, job in enumerate(jobs) if job.method.transform}
    needed = searches or any(not job.method.needs_text or inputs_wanted(job.assignment.tensors) for job in jobs)
    if not needed:
        return tuple(Measured() for _ in jobs)
    done: dict[int, Measured] = {}
    layouts = dict.fromkeys(job.assignment.checkpoint.shape for job in jobs)  # one pass, or one for each order
    for number, layout in enumerate(layouts):
        own = [at for at, job in enumerate(jobs) if job.assignment.checkpoint.shape == layout]
        looking = {at: searches[at] for at in own if at in searches}
        found = replace(prepared, checkpoint=jobs[own[0]].assignment.checkpoint).run(
            searches=tuple(looking.values()),
            rounded=not any(inputs_wanted(job.assignment.tensors) for job in jobs),  # importance alone is averaged
            memory=resources.memory,
            threads=resources.threads,
            device=resources.device,
            work=None if work is None else (work, f"pass-{number}"),
            pieces=resources.pieces,
            report=report,
        )
        rescalings = dict(zip(looking, found.rescalings, strict=True))
        importance, coverage = from_calibration(found), found.coverage
        for at in looking:
            if coverage is not None and not coverage.every:
                assignment = jobs[at].assignment
                check_coverage(coverage, linears_of(assignment.tensors, assignment.checkpoint.config))
        for at in own:
            absmax = _absmax(found.stats, rescalings.get(at, {}))
            done[at] = Measured(importance, rescalings.get(at, {}), absmax, coverage)
    return tuple(done[at] for at in range(len(jobs)))


def _search(job: Job) -> Search:
    from bitsmith.calibration.collect import Search

    tensors = job.assignment.tensors
    make = TRANSFORMS[job.method.transform].make
    return Search(make, linears_of(tensors, job.assignment.checkpoint.config), inputs_of(tensors))


def _absmax(stats: Mapping[str, Stats], rescalings: Mapping[int, tuple[Rescaling, ...]]) -> dict[str, float]:
    """Largest magnitudes of inputs after rescaling."""
    return {name: float(seen.max_abs.max(initial=0)) for name, seen in _rescaled(stats, rescalings).items()}


def _rescaled(stats: Mapping[str, Stats], rescalings: Mapping[int, tuple[Rescaling, ...]]) -> dict[str, Stats]:
    """Statistics of inputs after rescaling."""
    from bitsmith.calibration.transforms.fold import rescaled_stats

    changed = dict(stats)
    for layer, found in rescalings.items():
        for rescaling in (each for each in found if each.changes):
            names = [f"blk.{layer}.{name}" for name in rescaling.group.linears]
            changed |= {name: rescaled_stats(stats[name], rescaling.scale) for name in names}
    return changed

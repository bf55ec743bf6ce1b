"""The work of a run: makes one output after the other."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.measure import Job, Measured, measure
from bitsmith.calibration.notes import recovered_notes, rescaling_notes, rounding_notes, training_note
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.run import Prepared
from bitsmith.calibration.work import BlockwiseWork, Reports, naming, own_names
from bitsmith.containers.output import Marks
from bitsmith.containers.reservation import Reservation
from bitsmith.pipeline.executor import PlanWriter, Written
from bitsmith.pipeline.keeping import Ending, Kept, ending_of, finished_output, keep_output
from bitsmith.pipeline.kept_blocks import KeptBlocks
from bitsmith.pipeline.outputs import Output
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.coverage import Coverage
from bitsmith.recipe.plan import Plan
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.system.machine import cores, peak_memory
from bitsmith.system.progress import Progress, Report
from bitsmith.work.folder import WorkFolder

if TYPE_CHECKING:
    from bitsmith.calibration.blockwise import BlockwiseRounding, Rounded
    from bitsmith.calibration.end_to_end import EndToEnd, Trained
    from bitsmith.pipeline.spread import Spread

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """A finished output.

    notes: notes for the user about the run
    coverage: tokens that each expert saw; None without a calibration on text, or without experts
    """

    plan: Plan
    written: Written
    notes: tuple[str, ...] = ()
    coverage: Coverage | None = None


@dataclass(frozen=True)
class Work:
    """What all outputs of a run share.

    reservation: of all outputs
    kept: what is kept of the work on them
    prepared: the calibration with its tokens; None without a calibration
    spread: where tasks are done; None: all in this process
    """

    prepared: Prepared | None
    resources: Resources
    threads: int
    reservation: Reservation
    kept: Kept
    spread: Spread | None = None

    @property
    def verifiers(self) -> int:
        """Number of threads that read outputs back: all of this machine where `threads` are those of one worker."""
        return self.threads if self.spread is None else max(self.threads, cores())


def make_all(
    outputs: Sequence[Output],
    expected: Sequence[Quantized],
    shared: Work,
    *,
    report: Report,
    on_done: Callable[[Quantized], None] | None = None,
) -> list[Quantized]:
    """Make every output. The time of the shared calibration pass counts for the first output.

    on_done: called with every finished output
    """
    clock = time.monotonic()
    done = []
    if shared.spread is not None:
        shared.spread.begin(shared.kept.folders)
    endings = [finished_output(*each) for each in zip(shared.kept.folders, shared.kept.destinations, strict=True)]
    measured = _measured(outputs, shared, report)
    for at, (output, promised, found) in enumerate(zip(outputs, expected, measured, strict=True)):
        watch = _Watch(report)
        work = _Making(output, found, shared, shared.kept.folders[at], watch)
        ending = endings[at]
        with naming(own_names(output.assignment.tensors)):
            if ending is not None:
                made = work.finished_before(ending)
            else:
                made = work.blockwise() if output.method.needs_text else work.nearest()
        now = time.monotonic()
        result = replace(
            promised,
            plan=made.plan,
            manifest=made.written.manifest,
            recovered=made.written.recovered,
            seconds=now - clock,
            verify_seconds=now - watch.verifying,
            verify_cpu_seconds=time.process_time() - watch.worked,
            peak_memory=peak_memory(),
            calibration=made.plan.recipe.calibration,
            notes=(*made.notes, *shared.kept.take_words(), *shared.resources.take_notes()),
            coverage=made.coverage,
        )
        _log.info("wrote %s in %.1f s", result.out, result.seconds)
        _log_rate(result)
        if on_done is not None:
            on_done(result)
        done.append(result)
        clock = now
    return done


def _log_rate(result: Quantized) -> None:
    """Log the share of the machine's rate of products that a calibrated output reached, all its other work included."""
    working = result.seconds - result.verify_seconds
    if result.calibration_products and result.products_per_second and working > 0:
        reached = result.calibration_products / working
        share = 100 * reached / result.products_per_second
        _log.info(
            "calibration: %.3g products, %.3g a second, %.0f %% of what this machine takes",
            *(result.calibration_products, reached, share),
        )


def _measured(outputs: Sequence[Output], shared: Work, report: Report) -> list[Measured]:
    """What one pass over the original model found for each output; nothing for outputs without a calibration."""
    calibrated = [output for output in outputs if output.prepared is not None]
    if shared.prepared is None or not calibrated:
        return [Measured()] * len(outputs)
    jobs = [Job(each.assignment, each.method) for each in calibrated]
    with naming(own_names(calibrated[0].assignment.tensors)):
        found = iter(measure(shared.prepared, jobs, shared.resources, report, work=shared.kept.folders[0]))
    return [Measured() if output.prepared is None else next(found) for output in outputs]


@dataclass(frozen=True)
class _Making:
    """Makes one output."""

    output: Output
    measured: Measured
    shared: Work
    folder: WorkFolder
    report: Report

    @property
    def prepared(self) -> Prepared | None:
        """The calibration of this output, with its tokens."""
        return None if self.output.prepared is None else self.shared.prepared

    def nearest(self) -> Made:
        """Give every tensor the nearest codes, with weighted scales if there is an importance."""
        plan, coverage = self._plan(), self._told(self.measured.coverage)
        own = [] if coverage is None else [coverage.note()]

        def notes(written: Written) -> tuple[str, ...]:
            return (*own, *recovered_notes(plan.tensors, written.recovered))

        with PlanWriter(
            plan, self.output.path, self.shared.reservation, work=self.folder, report=self.report
        ) as writer:
            self._round_nearest(writer, plan)
            written = writer.finish(
                threads=self.shared.verifiers, coverage=coverage, verified=self._keeping(notes, coverage)
            )
        return Made(plan, written, notes(written), coverage)

    def _round_nearest(self, writer: PlanWriter, plan: Plan, *, without: Collection[str] = ()) -> None:
        """Round all tensors but those in `without` (output names), here or on the run's workers."""
        importance = self._importance(plan)
        if self.shared.spread is None:
            writer.round_nearest(importance, threads=self.shared.threads, without=without)
            return
        from bitsmith.pipeline.spread import round_spread

        absmax = None if self.prepared is None else self.measured.input_absmax
        round_spread(writer, plan, importance, self.shared.spread, self.folder, without=without, input_absmax=absmax)

    def finished_before(self, ending: Ending) -> Made:
        """An output that an earlier start of the same run has finished."""
        plan = self._plan()
        final = plan.with_coverage(ending.coverage).with_recovered(len(ending.recovered))
        return Made(plan, Written(final.manifest(ending.records), ending.recovered), ending.notes, ending.coverage)

    def _keeping(
        self, notes: Callable[[Written], Sequence[str]], coverage: Coverage | None
    ) -> Callable[[Written, Marks], None]:
        """Keeps the ending of the output when it is verified."""

        def keep(written: Written, marks: Marks) -> None:
            keep_output(self.folder, ending_of(written, notes(written), coverage), marks)

        return keep

    def blockwise(self) -> Made:
        """Make first the tensors outside the blocks, then the blocks one by one, then the head."""
        assert self.prepared is not None
        assert self.prepared.tokens is not None
        plan, method = self._plan(), self.output.method
        work = BlockwiseWork.of(
            plan,
            method,
            effort=self.output.effort,
            rescalings=self.measured.rescalings,
            seed=self.prepared.tokens.seed,
            norms=self.output.training is not None,
        )
        reports = Reports(work, self.prepared.tokens.tokens.size, self.prepared.tokens.all_experts)
        with PlanWriter(
            plan, self.output.path, self.shared.reservation, work=self.folder, report=self.report
        ) as writer:
            self._round_nearest(writer, plan, without=work.precomputed)
            trained = self._blocks(writer, plan, work, reports)
            coverage = self._told(reports.coverage)

            def notes(written: Written) -> tuple[str, ...]:
                found = [] if coverage is None else [coverage.note()]
                found += [] if trained is None else [training_note(trained)]
                found += rescaling_notes(self.measured.rescalings, own_names(plan.tensors))
                found += recovered_notes(plan.tensors, written.recovered)
                return (*found, *rounding_notes(reports.by_name))

            written = writer.finish(
                threads=self.shared.verifiers, coverage=coverage, verified=self._keeping(notes, coverage)
            )
        return Made(plan, written, notes(written), coverage)

    def _blocks(self, writer: PlanWriter, plan: Plan, work: BlockwiseWork, reports: Reports) -> Trained | None:
        """Round and write all blocks and the head. Returns what a training gave; None without one."""
        from bitsmith.calibration.blockwise import BlockwiseRounding, Rounded
        from bitsmith.calibration.tied_head import head_of

        assert self.prepared is not None
        assert self.prepared.tokens is not None
        if self.shared.spread is not None and self._spread(self.shared.spread, writer, plan, work, reports):
            return None
        tokens, resources = self.prepared.tokens, self.shared.resources
        head = head_of(work, plan.checkpoint, tokens.tokens, resources, self.report, folder=self.folder)
        rounding = BlockwiseRounding(plan.checkpoint, tokens, work.task, resources, head)
        kept = KeptBlocks(self.folder, writer, reports, rounding)
        if self.output.training is None:
            begin = kept.resume()
            if begin == (0, 0):
                self._write_embedding(writer, kept, rounding, work)
            self._round(rounding, kept, begin, lambda rounded: self._write(writer, kept, reports, rounded))
            return None
        self._write_embedding(writer, kept, rounding, work)
        trained = self._trained(plan, rounding, self.output.training, (kept, reports))
        for rows in work.rows(Rounded(trained.rows, {})):
            writer.write_rounded(rows)
        return trained

    def _spread(self, spread: Spread, writer: PlanWriter, plan: Plan, work: BlockwiseWork, reports: Reports) -> bool:
        """Round and write all blocks and the head on the run's workers. False if they cannot share them."""
        from bitsmith.pipeline.spread_blocks import kept_on_the_head, round_blocks

        assert self.prepared is not None
        assert self.prepared.tokens is not None
        tokens, trained = self.prepared.tokens, self.output.training is not None
        why = kept_on_the_head(work, tokens, self.shared.resources.device, trained=trained)
        if why:
            spread.notes.append(f"the blocks were rounded in one process: {why}")
            return False
        absmax = self.measured.input_absmax
        round_blocks(
            *(writer, plan, work, tokens, spread, self.folder),
            reports=reports,
            input_absmax=absmax,
            resources=self.shared.resources,
            report=self.report,
        )
        return True

    def _round(
        self, rounding: BlockwiseRounding, kept: KeptBlocks, begin: tuple[int, int], take: Callable[[Rounded], None]
    ) -> None:
        """Round block by block, then the head.

        begin: the first block and the first slab of the head
        take: gets each step, which is free before the next
        """
        name = self.output.method.rounder
        for layer in range(begin[0], rounding.layers):
            now = Progress(name, layer, rounding.layers, "blocks", f"block {layer}")
            self.report(now)
            take(rounding.block(layer, self._within(now)))
            kept.after_block(layer)
        kept.before_head()
        for number, slab in enumerate(rounding.head(begin[1]), begin[1]):
            take(slab)
            kept.after_slab(number)
        self.report(Progress(name, rounding.layers, rounding.layers, "blocks"))

    def _within(self, block: Progress) -> Report:
        """Takes the steps within a block, and reports them as a detail of it, so that the time left is the run's."""
        return lambda step: self.report(replace(block, detail=f"{block.detail}, step {step.done} of {step.total}"))

    def _trained(
        self, plan: Plan, rounding: BlockwiseRounding, how: EndToEnd, so_far: tuple[KeptBlocks, Reports]
    ) -> Trained:
        """The whole model, rounded and then trained end to end."""
        from bitsmith.calibration.blockwise import Lesson

        rows: list[RoundedRows] = []
        kept, reports = so_far

        def keep(rounded: Rounded) -> None:
            reports.add(rounded)
            rows.extend(rounded.rows)
            kept.collected(rounded.rows)

        if self.output.start is None:
            self._round(rounding, kept, kept.resume(rows), keep)
            kept.before_training()
        else:
            from bitsmith.calibration.started import stored_rows

            rows.extend(stored_rows(self.output.start, plan.checkpoint, rounding.formats))
        assert self.prepared is not None
        lesson = Lesson(self.prepared.longer(how.tokens), self.output.teacher or plan.checkpoint)
        return rounding.train(rows, how, lesson, self.report, self.folder)

    def _told(self, coverage: Coverage | None) -> Coverage | None:
        """The coverage with what starved experts got."""
        return None if coverage is None else replace(coverage, fallback=self.output.method.fallback(coverage.every))

    def _write_embedding(
        self, writer: PlanWriter, kept: KeptBlocks, rounding: BlockwiseRounding, work: BlockwiseWork
    ) -> None:
        """Write the embedding, if its rows are calibrated, before the blocks."""
        from bitsmith.calibration.blockwise import Rounded

        if rounding.embedding is None or not work.task.calibrates_embedding:
            return
        for rows in rounding.embedding.slabs():
            self.report(Progress(self.output.method.rounder, 0, rounding.layers, "blocks", "embedding"))
            for placed in work.rows(Rounded((rows,), {})):
                writer.write_rounded(placed)
                kept.wrote(placed.name)

    @staticmethod
    def _write(writer: PlanWriter, kept: KeptBlocks, reports: Reports, rounded: Rounded) -> None:
        """Write the rows of one step, and count its reports in."""
        reports.add(rounded)
        for rows in reports.work.rows(rounded):
            writer.write_rounded(rows)
            kept.wrote(rows.name)

    def _plan(self) -> Plan:
        """The final plan, with the text's hash and the ranges of inputs."""
        if self.prepared is None:
            return self.output.plan(None)
        return self.output.plan(self.prepared.record, self.measured.input_absmax)

    def _importance(self, plan: Plan) -> dict[str, np.ndarray]:
        if self.measured.importance is None:
            return {}
        return dict(self.measured.importance.by_output(plan.tensors))


class _Watch:
    """Passes reports on, and records the time of the first report of the stage "verify"."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.verifying = self.worked = math.inf  # wall-clock time, and processor time

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "verify":
            self.verifying = min(self.verifying, time.monotonic())
            self.worked = min(self.worked, time.process_time())
        self._report(progress)

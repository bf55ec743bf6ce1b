"""One comparison, from names to the result: open, make, measure one model after the other, and sum up.

Every measurement goes to the ledger as soon as it is there. A run that was stopped goes on with what is missing.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.comparison.candidates import Candidate, Maker, named_apart, open_candidate
from bitsmith.comparison.charts import require_charts, write_plots
from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.expected import Expected, machine_rate
from bitsmith.comparison.figures import Summing, layers_of, memory_at_run, speeds_of
from bitsmith.comparison.ledger import Ledger
from bitsmith.comparison.loading import kernel_of
from bitsmith.comparison.outputs import Outputs
from bitsmith.comparison.result import Comparison, Conditions, Failure, Original, Row, Speeds
from bitsmith.comparison.scores import TokenScores
from bitsmith.comparison.scoring import Scoring
from bitsmith.comparison.texts import domain_tokens, open_domains
from bitsmith.comparison.verdict import domain_warnings, tie_notes, verdict
from bitsmith.containers.sources import files_of
from bitsmith.errors import BitsmithError, UsageError
from bitsmith.evaluation.measure import read_windows, require_same_tokens
from bitsmith.system.machine import cores
from bitsmith.system.options import check_arguments, check_words, with_signature
from bitsmith.system.processor import processor_name
from bitsmith.system.progress import Report, silent
from bitsmith.texts.sources import names_of
from bitsmith.version import __version__

if TYPE_CHECKING:
    from bitsmith.comparison.words import CompareWords

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Events:
    """What a run tells while it works. on_plan: called with the expected time before anything long begins"""

    report: Report = silent
    on_plan: Callable[[Expected], None] | None = None
    on_failure: Callable[[Failure], None] | None = None
    on_measured: Callable[[str], None] | None = None


def run_comparison(
    model: str | Path, files: Sequence[str | Path], config: CompareConfig, events: Events = Events()
) -> Comparison:
    """Compare the candidates with the original `model`; see `bitsmith.api.compare`."""
    with Ledger(config.ledger) as ledger:
        return _Run(model, files, config, events, ledger).result()


def compare_and_write(
    model: str | Path, files: Sequence[str | Path], config: CompareConfig, events: Events = Events()
) -> tuple[Comparison, list[Path]]:
    """The same, and the files of --out, whose places are claimed before the work begins."""
    sources = [*files_of(model, *files, *config.calibration_sources)]
    with Outputs(config.outputs, sources=sources, force=config.force) as outputs:
        if config.plots is not None:
            require_charts()
        result = run_comparison(model, files, config, events)
        plots = [] if config.plots is None else write_plots(result, Path(config.plots), force=config.force)
        return result, [*outputs.write(result), *plots]


def compare(
    model: str | Path,
    files: str | Path | Sequence[str | Path] = (),
    *,
    report: Report = silent,
    on_plan: Callable[[Expected], None] | None = None,
    **words: Unpack[CompareWords],
) -> Comparison:
    """Compare quantized files with the original `model`. The other keywords are the options of `bitsmith compare`.

    `bitsmith.comparison.config.CompareConfig` describes them.

    model: a folder, a file, a hub id or "reference"
    files: quantized files and folders; `to` names formats that are made of the model
    on_plan: called with the expected time before anything long begins
    A candidate that cannot be compared is in the result's `failures`. Raises UsageError for a wrong call, other
    BitsmithErrors where the original, a text or the ledger cannot be used.
    """
    check_words("compare", CompareConfig, words, further=("files", "report", "on_plan"))
    check_arguments(compare, {"model": model, "files": files})
    return compare_and_write(model, names_of(files), CompareConfig(**words), Events(report, on_plan))[0]


with_signature(compare, CompareConfig)


class _Run:
    def __init__(
        self, model: str | Path, files: Sequence[str | Path], config: CompareConfig, events: Events, ledger: Ledger
    ) -> None:
        if not files and not config.targets:
            raise UsageError("there is nothing to compare; name files, or formats with --to=q8_0,q4_k_m.")
        self._started = time.perf_counter()
        self._model, self._files, self._config, self._events, self._ledger = model, files, config, events, ledger
        self._failures: list[Failure] = []
        self._domains = open_domains(config.texts)
        self._original = open_candidate(model)
        self._kernel = kernel_of(self._original.checkpoint, config.kernel)
        self._sha256 = ledger.sha256(self._original.checkpoint.files, events.report)
        self._maker = Maker(model, self._sha256, config)
        self._maker.check(config.targets)
        self._tokens = [
            domain_tokens(
                self._original, domain, context=config.context, max_windows=config.max_windows, report=events.report
            )
            for domain in self._domains
        ]

    def result(self) -> Comparison:
        """Everything, in order."""
        config, events = self._config, self._events
        there = self._opened()
        found = {name: self._maker.found(name) for name in config.targets}
        missing = tuple(name for name, candidate in found.items() if candidate is None)
        scoring = Scoring(self._original, self._sha256, self._tokens, self._kernel, self._ledger, config, events.report)
        if events.on_plan is not None:
            known = [*there, *(each for each in found.values() if each is not None)]
            events.on_plan(self._expected(scoring, known, missing))
        made = self._made(missing)
        ordered = [found[name] or made.get(name) for name in config.targets]
        candidates = named_apart([*there, *(each for each in ordered if each is not None)])
        scoring.expect(candidates)
        own = scoring.original()
        scored = [(each, scores) for each in candidates if (scores := self._scores(scoring, each)) is not None]
        floors = scoring.floors() if config.noise_floor else ()
        summing = Summing(self._tokens, own, max((floor.kld.value for floor in floors), default=None))
        rows = summing.rows(scored)
        rows = tuple(
            replace(
                row,
                sha256=scoring.sha256(each),
                speeds=self._speeds(each) if config.speed else None,
                layers=layers_of(self._original, each, self._ledger, events.report) if config.layers else {},
            )
            for row, each in _paired(rows, candidates)
        )
        tokens, texts = sum(each.tokens for each in self._tokens), summing.texts()
        return Comparison(
            self._own(summing),
            rows,
            tuple(self._failures),
            texts,
            floors,
            self._conditions(),
            verdict(rows, config.within, tokens),
            domain_warnings(rows, texts),
            (*tie_notes(rows, tokens), *scoring.notes, *(note for each in self._tokens for note in each.notes)),
        )

    def _scores(self, scoring: Scoring, candidate: Candidate) -> list[TokenScores] | None:
        """What a candidate does on each token; None, and a note, if it cannot be run."""
        try:
            scores = scoring.scores(candidate)
        except (BitsmithError, OSError) as error:
            self._fails(candidate.name, error)
            return None
        if self._events.on_measured is not None:
            self._events.on_measured(candidate.name)
        return scores

    def _own(self, summing: Summing) -> Original:
        own, first = summing.own(), self._original
        return Original(
            first.name,
            first.path,
            self._sha256,
            first.file_bytes,
            first.bits,
            memory_at_run(first.path),
            *own,
            self._speeds(first) if self._config.speed else None,
        )

    def _speeds(self, candidate: Candidate) -> Speeds | None:
        return speeds_of(candidate, self._ledger, self._config, self._events.report)

    def _opened(self) -> list[Candidate]:
        """The files that are there. Those that cannot be used are noted as failures."""
        found = []
        for path in self._files:
            try:
                candidate = open_candidate(path)
                self._require_same_tokens(candidate)
                found.append(candidate)
            except (BitsmithError, OSError) as error:
                self._fails(str(path), error)
        return found

    def _require_same_tokens(self, candidate: Candidate) -> None:
        """Raise UsageError for a candidate with another vocabulary."""
        config = self._config
        for domain, tokens in zip(self._domains, self._tokens, strict=True):
            theirs = read_windows(
                candidate, domain.texts, context=config.context, max_windows=config.max_windows
            ).windows
            require_same_tokens(candidate, self._original, theirs, tokens.windows, name=domain.name)

    def _fails(self, name: str, error: Exception) -> None:
        reason = error.flags if isinstance(error, BitsmithError) else str(error)
        self._failures.append(Failure(name, reason))
        _log.warning("%s is left out: %s", name, error)
        if self._events.on_failure is not None:
            self._events.on_failure(self._failures[-1])

    def _made(self, missing: tuple[str, ...]) -> dict[str, Candidate]:
        """Make what does not exist: with a calibration all at once, else one by one, so that one may fail alone."""
        made: dict[str, Candidate] = {}
        groups = [missing] if self._config.calibration_sources and missing else [(name,) for name in missing]
        for names in groups:
            try:
                found = self._maker.make_all(names, self._events.report)
                made |= dict(zip(names, found, strict=True))
            except BitsmithError as error:
                for name in names:
                    again = self._maker.found(name)
                    if again is not None:
                        made[name] = again
                    else:
                        self._fails(name, error)
        return made

    def _expected(self, scoring: Scoring, known: list[Candidate], missing: tuple[str, ...]) -> Expected:
        make = 0.0
        for name in missing:
            try:
                make += self._maker.planned(name).expected_seconds
            except BitsmithError:  # it fails again when it is made, and is noted there
                continue
        rate = scoring.window_seconds() or machine_rate(self._original.checkpoint, self._config)
        todo = scoring.todo(known) + len(missing) * scoring.windows
        return Expected(
            missing,
            make,
            todo,
            todo * rate,
            scoring.reference_bytes(todo > 0),
            len(known) + len(missing),
            scoring.windows,
        )

    def _conditions(self) -> Conditions:
        config = self._config
        words = ["bitsmith", "compare", str(self._model), *map(str, self._files)]
        words += [f"--to={','.join(config.targets)}"] if config.targets else []
        words += [f"--text={each}" for each in config.texts]
        words += [f"--context={config.context}"]
        words += [f"--max-windows={config.max_windows}"] if config.max_windows is not None else []
        words += [f"--calibration={each}" for each in config.calibration_sources]
        words += [
            f"--{name}={value}" for name, value in (("method", config.method), ("effort", config.effort)) if value
        ]
        return Conditions(
            __version__,
            self._kernel,
            config.context,
            processor_name(),
            config.threads or cores(),
            time.perf_counter() - self._started,
            shlex.join(words),
            config.within,
        )


def _paired(rows: Sequence[Row], candidates: Sequence[Candidate]) -> Iterator[tuple[Row, Candidate]]:
    """Each row with its candidate."""
    by_name = {each.name: each for each in candidates}
    return ((row, by_name[row.name]) for row in rows)

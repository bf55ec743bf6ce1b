"""One comparison, from names to the result: open, make, measure one model after the other, and sum up.

Every measurement goes to the ledger as soon as it is there. A run that was stopped goes on with what is missing.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.comparison.asking import Answers, Asking
from bitsmith.comparison.candidates import Candidate, Maker, open_candidate
from bitsmith.comparison.card import base_of
from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.expected import STEP, Expected, further_seconds, machine_rate
from bitsmith.comparison.figures import Summing, layers_of, layers_what, memory_at_run, speeds_of
from bitsmith.comparison.gathering import Failures, Gathering, scored_texts
from bitsmith.comparison.generations import Generation, usual_prompts
from bitsmith.comparison.ledger import Ledger
from bitsmith.comparison.loading import OneModel
from bitsmith.comparison.outputs import Beside, Outputs
from bitsmith.comparison.overlap import check_overlap
from bitsmith.comparison.result import Comparison, Conditions, Failure, Floor, Original, Row, Speeds
from bitsmith.comparison.scoring import Scoring, Tools
from bitsmith.comparison.spread import check as check_executor
from bitsmith.comparison.tasks.harness import require_harness
from bitsmith.comparison.tasks.naming import open_tasks
from bitsmith.comparison.tasks.scores import TaskScore, task_score
from bitsmith.comparison.texts import Domain, DomainTokens, domain_tokens, open_domains
from bitsmith.comparison.verdict import better_warnings, domain_warnings, few_warnings, tie_notes, verdict
from bitsmith.containers.sources import files_of
from bitsmith.errors import BitsmithError, UsageError
from bitsmith.system.machine import cores
from bitsmith.system.options import check_arguments, check_words, options_of, with_signature
from bitsmith.system.processor import processor_name
from bitsmith.system.progress import Report, silent
from bitsmith.texts.sources import names_of
from bitsmith.version import __version__

if TYPE_CHECKING:
    from bitsmith.comparison.words import CompareWords

_PLACES = ("out", "plots", "card", "write_logits", "ledger")
_BESIDE = (*_PLACES, "force", "threads", "executor", "workers", "work")  # options that change no figure


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
    """The same, and the paths of all files that were written. Their places are checked before the work begins."""
    sources = [*files_of(model, *files, *config.calibration_sources)]
    beside = Beside(config.card, config.plots, config.write_logits)
    with Outputs(config.outputs, beside, sources=sources, force=config.force) as outputs:
        result = run_comparison(model, files, config, events)
        return result, outputs.write(result)


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
        check_executor(config)
        self._started = time.perf_counter()
        self._model, self._files, self._config, self._events = model, files, config, events
        self._domains = open_domains(config.texts)
        self._original = open_candidate(model)
        self._sha256 = ledger.sha256(self._original.checkpoint.files, events.report)
        maker = Maker(model, self._original, self._sha256, config, ledger)
        maker.check(config.targets)
        self._tokens = [self._tokens_of(domain) for domain in self._domains]
        calibrated = {"--calibration": config.calibration_sources, "--calibrated-on": names_of(config.calibrated_on)}
        texts = list(zip(self._domains, self._tokens, strict=True))
        scored = scored_texts(self._original, texts) if any(calibrated.values()) else {}
        overlaps = (check_overlap(self._domains, names, scored, option=option) for option, names in calibrated.items())
        self._overlaps = tuple(note for notes in overlaps for note in notes)
        tasks, others = open_tasks(config.task_names, self._domains, shots=config.shots or 0)
        if others:
            require_harness(others)
        self._task_names = [task.name for task in tasks]
        prompts = config.prompts or usual_prompts(self._tokens[0], self._original.tokenizer)
        self._prompts = prompts if config.generate else ()
        self._tools = Tools(ledger, OneModel(config.threads, events.report), config, events.report, self._original)
        self._kernel = self._tools.kernel(self._original)
        self._scoring = Scoring(self._original, self._sha256, self._tokens, self._tools)
        self._asking = Asking(tasks, others, self._prompts, self._tools)
        self._failures = Failures(events.on_failure)
        self._gathering = Gathering(self._original, maker, config, self._failures, texts)

    def _tokens_of(self, domain: Domain) -> DomainTokens:
        context, most = self._config.context, self._config.max_windows
        return domain_tokens(self._original, domain, context=context, max_windows=most, report=self._events.report)

    def result(self) -> Comparison:
        """Everything, in order."""
        config, events, scoring = self._config, self._events, self._scoring
        self._gathering.open(self._files)
        if events.on_plan is not None:
            events.on_plan(self._expected())
        self._gathering.make(events.report)
        candidates = self._gathering.candidates
        scoring.spread(candidates)
        scoring.expect(candidates)
        own = scoring.original()
        answers = {"": self._asking.answers(self._original)}
        scored = []
        for candidate in candidates:
            try:
                scored.append((candidate, scoring.scores(candidate)))
                answers[candidate.name] = self._asking.answers(candidate)
            except (BitsmithError, OSError) as error:
                scored = [pair for pair in scored if pair[0] is not candidate]
                self._failures.add(candidate.name, error)
            else:
                if events.on_measured is not None:
                    events.on_measured(candidate.name)
        floors = scoring.floors() if config.noise_floor else ()
        if config.write_logits is not None:
            scoring.write_logits(config.write_logits, force=config.force)
        self._tools.model.release()
        summing = Summing(self._tokens, own, max((floor.kld.value for floor in floors), default=None))
        by_name = {each.name: each for each, _ in scored}
        rows = tuple(self._whole(row, by_name[row.name], answers) for row in summing.rows(scored))
        return self._comparison(summing, rows, answers, floors)

    def _comparison(
        self, summing: Summing, rows: tuple[Row, ...], answers: Mapping[str, Answers], floors: tuple[Floor, ...]
    ) -> Comparison:
        tokens, texts, config = sum(each.tokens for each in self._tokens), summing.texts(), self._config
        notes = (
            *self._overlaps,
            *self._gathering.notes,
            *self._scoring.notes,
            *(note for each in self._tokens for note in each.notes),
        )
        generations = tuple(
            Generation(prompt, answers[""].texts[number], {row.name: answers[row.name].texts[number] for row in rows})
            for number, prompt in enumerate(self._prompts)
        )
        return Comparison(
            original=self._own(summing, answers[""]),
            rows=rows,
            failures=tuple(self._failures.found),
            texts=texts,
            floors=floors,
            conditions=self._conditions(),
            verdict=verdict(rows, config.within, tokens, texts),
            warnings=(*domain_warnings(rows, texts), *better_warnings(rows), *few_warnings(texts)),
            notes=(*tie_notes(rows, tokens), *notes),
            generations=generations,
        )

    def _whole(self, row: Row, candidate: Candidate, answers: Mapping[str, Answers]) -> Row:
        """A row with what is measured beside the tokens."""
        tools = self._tools
        return replace(
            row,
            sha256=self._scoring.sha256(candidate),
            speeds=self._speeds(candidate),
            layers=layers_of(self._original, candidate, tools.ledger, tools.report) if self._config.layers else {},
            tasks=self._scores(answers[row.name], answers[""]),
        )

    def _own(self, summing: Summing, answers: Answers) -> Original:
        summary, domains = summing.own()
        first = self._original
        return Original(
            name=first.name,
            path=first.path,
            sha256=self._sha256,
            file_bytes=first.file_bytes,
            bits=first.bits,
            memory=memory_at_run(first.path),
            summary=summary,
            domains=domains,
            speeds=self._speeds(first),
            tasks=self._scores(answers, answers),
        )

    def _scores(self, answers: Answers, original: Answers) -> tuple[TaskScore, ...]:
        each = zip(self._task_names, answers.right, original.right, strict=True)
        return (*(task_score(*values) for values in each), *answers.harness)

    def _speeds(self, candidate: Candidate) -> Speeds | None:
        if not self._config.speed:
            return None
        return speeds_of(candidate, self._tools.ledger, self._config, self._events.report)

    def _expected(self) -> Expected:
        scoring, gathering, config = self._scoring, self._gathering, self._config
        known, missing = gathering.candidates, gathering.missing
        checkpoint = self._original.checkpoint
        window = scoring.window_seconds() or machine_rate(checkpoint, config)
        passes = scoring.todo(known) + len(missing) * scoring.windows
        todo = self._asking.todo([self._original, *known], len(missing))
        ledger = self._tools.ledger
        layers = [ledger.get(layers_what(self._original, each, ledger)) for each in known]
        return Expected(
            to_make=missing,
            make_seconds=gathering.make_seconds(),
            passes=passes,
            measure_seconds=passes * window,
            disk=scoring.reference_bytes(passes > 0),
            candidates=len(known) + len(missing),
            windows=scoring.windows,
            todo=todo,
            ask_seconds=(todo.tokens + todo.answer_steps * STEP) * window / config.context,
            write_seconds=todo.text_steps * STEP * window / config.context,
            more_seconds=further_seconds(
                checkpoint,
                config,
                floor_windows=scoring.floor_windows() if config.noise_floor else 0,
                models=1 + len(known) + len(missing),
                candidates=layers.count(None) + len(missing),
                window=window,
            ),
        )

    def _kernels(self) -> str:
        """The kernel in words."""
        wanted = self._config.kernel or self._kernel
        return wanted if wanted == self._kernel else f"{wanted} (the original: {self._kernel})"

    def _conditions(self) -> Conditions:
        config = self._config
        return Conditions(
            version=__version__,
            kernel=self._kernels(),
            context=config.context,
            machine=processor_name(),
            threads=config.threads or cores(),
            seconds=time.perf_counter() - self._started,
            command=command_of(self._model, self._files, config),
            within=config.within,
            base=base_of(str(self._model), self._original.checkpoint.hf_config),
        )


def command_of(model: str | Path, files: Sequence[str | Path], config: CompareConfig) -> str:
    """The command line that makes this comparison: with every option that differs from its default."""
    words = ["bitsmith", "compare", str(model), *map(str, files)]
    for each in options_of(CompareConfig):
        value = getattr(config, each.name)
        if value == each.default or each.name in _BESIDE:
            continue
        flag = next((name for name in each.flags if name.startswith("--")), f"--{each.name.replace('_', '-')}")
        if isinstance(value, bool):
            words.append(flag.split("/")[0 if value else -1])
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"{flag}={one}" for one in values]
    return shlex.join(words)

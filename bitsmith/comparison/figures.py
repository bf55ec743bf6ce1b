"""Makes rows of what was measured: figures with errors, ties, the Pareto front, memory and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitsmith.comparison.candidates import Candidate
from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.ledger import Ledger, What
from bitsmith.comparison.loading import load
from bitsmith.comparison.result import Measured, Row, Speeds
from bitsmith.comparison.scores import TokenScores
from bitsmith.comparison.statistics import Drawn, Draws, Summary, difference, summarize
from bitsmith.comparison.texts import DomainTokens
from bitsmith.errors import BitsmithError
from bitsmith.evaluation.moments import Estimate
from bitsmith.system.machine import cores
from bitsmith.system.processor import processor_name
from bitsmith.system.progress import Report, silent

_SPEED_KERNEL = "int16"  # what `run` and `chat` use
_REPEAT = 3


class Summing:
    """Sums up what was measured, all models with the same draws.

    original: what the original does on each token, one a domain
    floor: the noise floor, nats of mean KLD; None if there is none
    """

    def __init__(self, tokens: Sequence[DomainTokens], original: list[TokenScores], floor: float | None) -> None:
        self._tokens, self._original, self._floor = tokens, original, floor
        self._draws = Draws([each.clusters for each in tokens])
        self._apart = [Draws([each.clusters]) for each in tokens]

    def own(self) -> tuple[Summary, dict[str, Summary]]:
        """The original's figures: of all texts, and of each."""
        drawn, domains = self._summed(self._original)
        return drawn.summary, domains

    def texts(self) -> tuple[Measured, ...]:
        """What was measured on."""
        return tuple(
            Measured(
                *(each.name, each.text, each.text_sha256, len(each.windows), each.tokens),
                *(each.unit, int(each.clusters.max()) + 1),
            )
            for each in self._tokens
        )

    def rows(self, scored: Sequence[tuple[Candidate, list[TokenScores]]]) -> tuple[Row, ...]:
        """The rows, those that lose least first."""
        found: list[tuple[Row, Drawn]] = []
        for candidate, scores in scored:
            drawn, domains = self._summed(scores)
            found.append((_row(candidate, drawn, domains, self._floor), drawn))
        found.sort(key=lambda pair: pair[0].summary.kld.value)
        return tuple(
            replace(
                row,
                ties=tuple(
                    other.name for other, theirs in found if other.name != row.name and difference(drawn, theirs).tie
                ),
                front=not any(_dominates(other, row) for other, _ in found),
            )
            for row, drawn in found
        )

    def _summed(self, scores: list[TokenScores]) -> tuple[Drawn, dict[str, Summary]]:
        drawn = summarize(scores, self._original, self._draws)
        if len(self._tokens) == 1:
            return drawn, {self._tokens[0].name: drawn.summary}
        pairs = zip(self._tokens, scores, self._original, self._apart, strict=True)
        return drawn, {each.name: summarize([one], [own], draws).summary for each, one, own, draws in pairs}


def _row(candidate: Candidate, drawn: Drawn, domains: dict[str, Summary], floor: float | None) -> Row:
    kld = drawn.summary.kld
    return Row(
        name=candidate.name,
        path=candidate.path,
        sha256="",
        container=candidate.container,
        method=candidate.method,
        file_bytes=candidate.file_bytes,
        bits=candidate.bits,
        linear_bits=candidate.linear_bits,
        memory=memory_at_run(candidate.path),
        make_seconds=None if candidate.made is None else candidate.made.seconds,
        summary=drawn.summary,
        domains=domains,
        at_floor=floor is not None and kld.value - 1.96 * kld.error <= floor,
    )


def _dominates(one: Row, other: Row) -> bool:
    """Whether a row is no larger and loses no more, and is better in one of the two."""
    first, second = (one.file_bytes, one.summary.kld.value), (other.file_bytes, other.summary.kld.value)
    return first != second and first[0] <= second[0] and first[1] <= second[1]


def memory_at_run(path: Path) -> int | None:
    """Bytes that bitsmith needs to run a file on this machine, as `bitsmith plan` says; None if it cannot say."""
    from bitsmith.planner.report import plan

    try:
        rows = plan(path, devices=["this"], runtime="bitsmith").rows
    except BitsmithError:
        return None
    return rows[0].verdicts[0].total if rows and rows[0].verdicts else None


def speed_what(candidate: Candidate, ledger: Ledger, config: CompareConfig) -> What:
    """The speed of a model, for the ledger."""
    threads = config.threads or cores()
    return What(
        *("speed", candidate.name, ledger.sha256(candidate.checkpoint.files)),
        definition=f"speed-1 {_SPEED_KERNEL} {threads} threads {processor_name()}",
    )


def speeds_of(candidate: Candidate, ledger: Ledger, config: CompareConfig, report: Report = silent) -> Speeds | None:
    """Prompt and generation speed with the kernel that runs models; None if it cannot run this one.

    Measured anew each time, since it depends on what else the machine does. The ledger keeps the last.
    """
    from bitsmith.evaluation.speed import check_counts, measure_speed
    from bitsmith.runtime.load import choose_kernel

    try:
        prompt, gen = check_counts(candidate.config.context, prompt=None, gen=None, repeat=_REPEAT)
        kernel = choose_kernel(candidate.checkpoint, None, default=_SPEED_KERNEL)
        model = load(candidate.checkpoint, kernel, threads=config.threads, report=report)
        rates = measure_speed(model, prompt=prompt, gen=gen, repeat=_REPEAT, report=report)
    except BitsmithError:
        return None
    figures: dict[str, Any] = {}
    for name, rate in zip(("prompt", "generation"), rates, strict=True):
        if rate is not None:
            figures |= {name: rate.mean, f"{name}_deviation": rate.deviation, f"{name}_tokens": rate.tokens}
    ledger.put(speed_what(candidate, ledger, config), figures)
    return Speeds(
        Estimate(figures["prompt"], figures["prompt_deviation"]),
        Estimate(figures["generation"], figures["generation_deviation"]),
        figures["prompt_tokens"],
        figures["generation_tokens"],
    )


def layers_what(original: Candidate, candidate: Candidate, ledger: Ledger) -> What:
    """The errors of a candidate's matrices, for the ledger."""
    return What(
        *("layers", candidate.name, ledger.sha256(candidate.checkpoint.files)),
        *(original.name, ledger.sha256(original.checkpoint.files)),
        definition="relative squared errors-1",
    )


def layers_of(original: Candidate, candidate: Candidate, ledger: Ledger, report: Report = silent) -> dict[str, float]:
    """The relative squared error of each matrix; empty if the files cannot be compared matrix by matrix."""
    from bitsmith.comparison.layers import tensor_errors

    what = layers_what(original, candidate, ledger)
    kept = ledger.get(what)
    if kept is not None:
        return {name: float(error) for name, error in kept.figures.items()}
    try:
        found = tensor_errors(original.checkpoint, candidate.checkpoint, report)
    except BitsmithError:
        return {}
    ledger.put(what, found)
    return found

"""The finished comparison, as values: a row for each candidate, and what was measured how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitsmith.comparison.generations import Generation
from bitsmith.comparison.statistics import Summary
from bitsmith.comparison.tasks.scores import TaskScore
from bitsmith.evaluation.moments import Estimate
from bitsmith.system.sizes import human_bytes
from bitsmith.system.tables import html_table


@dataclass(frozen=True)
class Speeds:
    """Tokens a second, mean and standard deviation, of reading a prompt and of generating."""

    prompt: Estimate
    generation: Estimate
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Row:
    """One candidate.

    container: "gguf", "gptq", "awq", "bnb", ..., "floats"
    method: how its codes were chosen; "" if the file does not say
    file_bytes: bytes of the files of weights
    bits, linear_bits: bits of data for each weight: of all tensors, and of the matrices inside of blocks
    memory: bytes at run with bitsmith and the whole context of the plan; None if it cannot be planned
    make_seconds: time to make it; None for a file that was there
    domains: figures of each text alone
    layers: relative squared error of each matrix, by GGUF's name
    tasks: scores of each task
    ties: names of candidates whose mean KLD the errors do not separate from this one's
    front: whether no other candidate is smaller and loses less
    at_floor: whether it loses no more than rounding does to the original
    """

    name: str
    path: Path
    sha256: str
    container: str
    method: str
    file_bytes: int
    bits: float
    linear_bits: float
    memory: int | None
    make_seconds: float | None
    summary: Summary
    domains: Mapping[str, Summary]
    ties: tuple[str, ...] = ()
    front: bool = False
    at_floor: bool = False
    speeds: Speeds | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Floor:
    """What rounding alone does to the original. name: which rounding; tokens: number of tokens it was measured on"""

    name: str
    kld: Estimate
    tokens: int


@dataclass(frozen=True)
class Measured:
    """One text of the comparison. unit: what the errors are over; units: how many of them"""

    name: str
    text: str
    text_sha256: str
    windows: int
    tokens: int
    unit: str
    units: int


@dataclass(frozen=True)
class Original:
    """The model that all candidates are compared with."""

    name: str
    path: Path
    sha256: str
    file_bytes: int
    bits: float
    memory: int | None
    summary: Summary
    domains: Mapping[str, Summary]
    speeds: Speeds | None = None
    tasks: tuple[TaskScore, ...] = ()


@dataclass(frozen=True)
class Conditions:
    """How it was measured. base: the original's name on the hub, or the best guess at it"""

    version: str
    kernel: str
    context: int
    machine: str
    threads: int
    seconds: float
    command: str
    within: float
    base: str


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`.

    rows: the candidates, those that lose least first
    failures: candidates that could not be compared
    floors: noise floors; empty if none was measured
    verdict: one sentence
    warnings, notes: for the user, a sentence each
    generations: what all write after the same prompts
    """

    original: Original
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    texts: tuple[Measured, ...]
    floors: tuple[Floor, ...]
    conditions: Conditions
    verdict: str
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    generations: tuple[Generation, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of scored tokens of all texts."""
        return sum(text.tokens for text in self.texts)

    @property
    def floor(self) -> float | None:
        """The highest noise floor: nats of mean KLD. None if none was measured."""
        return max((floor.kld.value for floor in self.floors), default=None)

    def __repr__(self) -> str:
        """One line."""
        return f"<Comparison of {self.original.name!r}: {len(self.rows)} candidates, {self.tokens:,} tokens>"

    def lines(self) -> list[str]:
        """What stands below the table, in words."""
        lines = []
        for text in self.texts:
            over = f"{text.units:,} {text.unit}"
            lines.append(
                f"{text.name}: {text.windows:,} windows of {self.conditions.context} tokens of {text.text}, "
                f"{text.tokens:,} scored; errors over {over}"
            )
        for floor in self.floors:
            lines.append(f"noise floor, {floor.name}: mean KLD {floor.kld.value:.2e} on {floor.tokens:,} tokens")
        return [*lines, *self.warnings, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def records(self) -> list[dict[str, Any]]:
        """One flat dictionary for each candidate, the original first: for CSV files and tables."""
        from bitsmith.comparison.table import records

        return records(self)

    def frame(self) -> Any:
        """The records as a pandas DataFrame. Raises UsageError if pandas is not installed."""
        from bitsmith.comparison.table import frame

        return frame(self)

    def report(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the report: .html, .csv or .json, by the ending. Returns the path. Raises BitsmithError."""
        from bitsmith.comparison.outputs import write_report

        return write_report(self, path, force=force)

    def _repr_html_(self) -> str:
        rows = [
            (
                *(row.name, human_bytes(row.file_bytes), f"{row.bits:.2f}", f"{row.summary.perplexity.value:.4f}"),
                *(
                    f"{row.summary.kld.value:.6f} ± {row.summary.kld.error:.6f}",
                    f"{100 * row.summary.top1.value:.2f} %",
                ),
            )
            for row in self.rows
        ]
        headings = ("candidate", "size", "bits", "perplexity", "mean KLD", "top-1")
        return html_table(f"{self.original.name}: {self.verdict}", rows, headings=headings)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value

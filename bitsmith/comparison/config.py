"""CompareConfig: every option of `compare`, for the command line and the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsmith.errors import UsageError, quoted
from bitsmith.scale.config import ScaleConfig
from bitsmith.system.machine import check_threads
from bitsmith.system.options import check_types, option
from bitsmith.texts.sources import names_of

WITHIN = 1.0  # per cent
REPORTS = (".html", ".csv", ".json")
KINDS = ("scores", "floor", "speed", "tasks", "generations", "layers")  # of measurements of the ledger


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ScaleConfig):
    """All options of `compare` except the model and the files. Raises UsageError for a value that is never valid."""

    to: str | Sequence[str] | None = option(
        None,
        group="Candidates",
        metavar="FORMATS",
        help="Formats to make of MODEL and to compare, with commas between them: q8_0,q4_k_m,gptq/int4; repeatable. "
        "What is made is kept in the cache.",
    )
    method: str | None = option(
        None, group="Candidates", metavar="METHOD", help="How codes are chosen, see `bitsmith quantize`."
    )
    effort: str | None = option(
        None, group="Candidates", metavar="LEVEL", help="fast, normal, high or max, see `bitsmith quantize`."
    )
    calibration: str | Path | Sequence[str | Path] | None = option(
        None,
        group="Candidates",
        metavar="SOURCE",
        help="Text to calibrate on, see `bitsmith quantize`; it must share nothing with the texts of the comparison.",
    )
    text: str | Path | Sequence[str | Path] | None = option(
        None,
        group="Measurement",
        metavar="NAME=FILE",
        help="A text to measure on, by a name for the report; a file of text, .jsonl, .json or .parquet, or "
        "owner/name[:FILE] of the hub; repeatable; default: a built-in one.",
    )
    context: int = option(512, "-c", group="Measurement", help="Tokens per window.")
    max_windows: int | None = option(None, group="Measurement", help="Stop after N windows of each text.")
    logits: str | Path | None = option(
        None,
        group="Measurement",
        metavar="FILE",
        help="Take the original's predictions from a file of llama-perplexity --kl-divergence-base, made on the same "
        "text and context; for one text.",
    )
    tasks: str | Sequence[str] | None = option(
        None,
        group="Measurement",
        metavar="NAMES",
        help="Questions with known answers, with commas between: made (continuations of the texts), a .csv file or a "
        "folder in MMLU's layout, a .jsonl file, NAME=FILE, or a task of lm-eval; repeatable.",
    )
    shots: int | None = option(
        None,
        group="Measurement",
        help="Examples before each question: from SUBJECT_dev beside a file or in ../dev, or as lm-eval has them; "
        "default: none, and lm-eval's own number.",
    )
    task_limit: int | None = option(None, group="Measurement", help="Ask at most N questions of a task of lm-eval.")
    generate: int = option(
        32, group="Measurement", help="Tokens that every model writes after the same prompts, greedy; 0 for none."
    )
    prompt: str | Sequence[str] | None = option(
        None,
        group="Measurement",
        metavar="TEXT",
        help="A prompt for that; repeatable; default: three beginnings from the first text.",
    )
    calibrated_on: str | Sequence[str] | None = option(
        None,
        group="Measurement",
        metavar="SOURCE",
        help="Text that FILES were calibrated on: an error if a text of the comparison stands in it; repeatable.",
    )
    within: float = option(
        WITHIN, group="Measurement", help="Loss of quality, in per cent, that the verdict takes for small enough."
    )
    noise_floor: bool = option(
        True,
        "--noise-floor/--no-noise-floor",
        group="Measurement",
        help="Measure what rounding alone does to the original; this needs torch.",
    )
    layers: bool = option(
        True, "--layers/--no-layers", group="Measurement", help="Measure the error of each matrix, for the heat map."
    )
    speed: bool = option(False, group="Measurement", help="Also measure prompt and generation speed.")
    out: str | Path | Sequence[str | Path] | None = option(
        None,
        "-o",
        group="Output",
        metavar="FILE",
        help="Write the report: NAME.html (one page for a browser), NAME.csv or NAME.json; repeatable.",
    )
    card: str | Path | None = option(
        None, group="Output", metavar="DIR", help="Write README.md for a repository of the hub into this folder."
    )
    write_logits: str | Path | None = option(
        None,
        group="Output",
        metavar="FILE",
        help="Write the original's predictions for llama-perplexity --kl-divergence; for one text.",
    )
    plots: str | Path | None = option(
        None, group="Output", metavar="DIR", help="Write the charts as SVG and PNG into this folder."
    )
    ledger: str | Path | None = option(
        None, group="Output", metavar="FILE", help="Where measurements are kept; default: in the user's data folder."
    )
    force: bool = option(False, group="Output", help="Replace outputs that exist.")
    threads: int | None = option(None, group="Machine", help="Number of threads; default: one per core.")
    kernel: str | None = option(
        None, group="Machine", metavar="NAME", help="What computes the candidates, see `bitsmith eval`; default: exact."
    )
    revision: str | None = option(
        None, group="Source", metavar="NAME", help="Branch, tag or commit of a model of the hub."
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_threads(self.threads)
        self.check_executor()
        if self.max_windows is not None and self.max_windows < 1:
            raise UsageError(f"--max-windows={self.max_windows}: expected 1 or more.")
        if self.generate < 0:
            raise UsageError(f"--generate={self.generate}: expected 0 or more.")
        if self.task_limit is not None and self.task_limit < 1:
            raise UsageError(f"--task-limit={self.task_limit}: expected 1 or more.")
        if self.shots is not None and self.shots < 0:
            raise UsageError(f"--shots={self.shots}: expected 0 or more.")
        if not 0 < self.within < 100:
            raise UsageError(f"--within={self.within:g}: expected a loss above 0 and below 100 per cent.")
        if (self.logits or self.write_logits) and len(self.texts) > 1:
            raise UsageError("--logits and --write-logits are for one text; give one --text.")
        for path in self.outputs:
            if Path(path).suffix.lower() not in REPORTS:
                raise UsageError(f"--out={quoted(path)}: expected a name that ends in {', '.join(REPORTS)}.")

    @property
    def targets(self) -> tuple[str, ...]:
        """The formats of `to`, each once, in order. Raises UsageError for an unknown container."""
        from bitsmith.recipe.target import Target

        names = [name.strip() for each in names_of(self.to) for name in str(each).split(",")]
        found: dict[str, str] = {}
        for name in filter(None, names):
            found.setdefault(str(Target.parse(name)), name)
        return tuple(found.values())

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of `tasks`, each once, in order."""
        found = (name.strip() for each in names_of(self.tasks) for name in str(each).split(","))
        return tuple(dict.fromkeys(name for name in found if name))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts in `prompt`; empty for the usual ones."""
        return tuple(map(str, names_of(self.prompt)))

    @property
    def texts(self) -> tuple[str | Path, ...]:
        """The names in `text`; empty for the built-in one."""
        return names_of(self.text)

    @property
    def outputs(self) -> tuple[str | Path, ...]:
        """The names in `out`."""
        return names_of(self.out)

    @property
    def calibration_sources(self) -> tuple[str | Path, ...]:
        """The names in `calibration`; empty: not given."""
        return names_of(self.calibration)

"""`tune qat`: rounds a model block by block, and then trains the whole of it end to end against the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.calibration.method import MAX_EFFORT
from bitsmith.errors import UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import Training, quantize_checkpoint
from bitsmith.system.options import check_arguments, check_words, option, with_signature
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd
    from bitsmith.pipeline.result import Quantized
    from bitsmith.tune.qat_words import QatWords

DEPTHS = ("scales", "all")
OPTIMIZERS = ("adam", "adam-8bit")
_SAMPLE = "The quick brown fox, 12 × 3 = 36.\n\tdef main(): return 'déjà vu'\n"


@dataclass(frozen=True, kw_only=True)
class QatConfig(QuantizeConfig):
    """All options of `tune qat` except the model and the target."""

    train: str = option(
        "scales",
        group="Training",
        metavar="WHAT",
        help="scales: codes stay, scales, minima and norms are trained; all: the weights behind the codes too.",
    )
    effort: str | None = option(
        None,
        group="Method",
        metavar="LEVEL",
        help="Of the rounding before the training: fast (gptq), normal (learned) or high (learned, three times the "
        "steps); default: normal.",
    )
    steps: int | None = option(None, group="Training", help="Number of steps; default: 300 for scales, 600 for all.")
    batch: int = option(8, group="Training", help="Windows of the text in a step.")
    training_tokens: int | None = option(
        None,
        group="Training",
        help="Maximum number of tokens of the text to train on; default: 655,360 for scales, 1,310,720 for all, and at "
        "least those of the calibration.",
    )
    teacher: str | Path | None = option(
        None,
        group="Training",
        metavar="MODEL",
        help="Learn this model's predictions, not those of the original; it must have the same tokenizer.",
    )
    start: str | Path | None = option(
        None,
        group="Training",
        metavar="FILE",
        help="Go on from the codes that this file of the model holds, in the same formats, in place of rounding.",
    )
    optimizer: str = option(
        "adam", group="Training", metavar="NAME", help="adam, or adam-8bit: its states take a quarter of the memory."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in DEPTHS:
            raise UsageError(f"--train={quoted(self.train)}: unknown; expected {', '.join(DEPTHS)}.")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"--optimizer={quoted(self.optimizer)}: unknown; expected {', '.join(OPTIMIZERS)}.")
        if self.effort == MAX_EFFORT:
            raise UsageError(
                "--effort=max rounds as high does and then trains scales, which `tune qat` does itself; give fast, "
                "normal or high."
            )
        given = {"--method": self.method, "--effort": self.effort}
        for flag, value in given.items():
            if self.start is not None and value is not None:
                raise UsageError(f"{flag}={value}: --start holds codes already, so none are chosen; leave it out.")
        counts = {"--steps": self.steps, "--batch": self.batch, "--training-tokens": self.training_tokens}
        for flag, count in counts.items():
            if count is not None and count < 1:
                raise UsageError(f"{flag}={count}: expected 1 or more.")

    def how(self, teacher: str = "", start: str = "") -> EndToEnd:
        """How the model is trained. teacher, start: names of another teacher than the original, of a file with codes"""
        from bitsmith.calibration.end_to_end import usual

        usually = usual(self.train)
        return replace(
            usually,
            steps=self.steps or usually.steps,
            batch=self.batch,
            tokens=self.training_tokens or usually.tokens,
            optimizer=self.optimizer,
            teacher=teacher,
            start=start,
        )


def tune_qat(
    model: str | Path,
    *,
    to: str,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    **words: Unpack[QatWords],
) -> Quantized:
    """Quantize a model with training: rounded by `method`, then trained end to end against the original.

    model: a folder, a 16-bit file, a hub name or "reference"
    to: as in `bitsmith.quantize`
    The other keywords are the options of `bitsmith tune qat`. Raises as `bitsmith.quantize` does.
    """
    check_words("tune_qat", QatConfig, words, further=("to", "report", "on_plan"))
    check_arguments(tune_qat, {"model": model, "to": to})
    return run_qat(model, to, QatConfig(**words), report=report, on_plan=on_plan)


with_signature(tune_qat, QatConfig)


def run_qat(
    model: str | Path,
    to: str,
    config: QatConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> Quantized:
    """The same as `tune_qat`, with a configuration."""
    start = None if config.start is None else open_checkpoint(config.start).laid_out("gguf")
    if config.method is None:
        starts = config.start is not None or config.effort == "fast"  # no steps of learning before the training
        config = replace(config, start=None, method="gptq" if starts else "learned")
    checkpoint = open_checkpoint(model, revision=config.revision)
    teacher = None if config.teacher is None else _teacher(config.teacher, checkpoint)
    names = ["" if model is None else model.name for model in (teacher, start)]
    how = Training(config.how(*names), teacher, start)
    return quantize_checkpoint(checkpoint, [to], config, training=how, report=report, on_plan=on_plan)[0]


def _teacher(name: str | Path, student: Checkpoint) -> Checkpoint:
    """The teacher. Raises UsageError if its tokens are not the student's."""
    teacher = open_checkpoint(name).laid_out("gguf")
    if teacher.config.vocab != student.config.vocab:
        raise UsageError(
            f"--teacher={quoted(name)}: it has {teacher.config.vocab:,} tokens, {student.name} has "
            f"{student.config.vocab:,}; a teacher must have the same tokenizer."
        )
    theirs, own = teacher.tokenizer(), student.tokenizer()
    others = [
        number
        for number, (text, wanted) in enumerate(zip(theirs.vocabulary.tokens, own.vocabulary.tokens, strict=False))
        if text != wanted
    ]
    if others:
        raise UsageError(
            f"--teacher={quoted(name)}: token {others[0]} of its tokenizer is another than that of {student.name} "
            f"({len(others):,} differ); a teacher must have the same tokenizer."
        )
    if list(theirs.encode(_SAMPLE, add_special=True)) != list(own.encode(_SAMPLE, add_special=True)):
        raise UsageError(
            f"--teacher={quoted(name)}: its tokenizer gives other tokens than that of {student.name}; a teacher must "
            "have the same one."
        )
    return teacher

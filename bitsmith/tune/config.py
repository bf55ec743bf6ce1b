"""QloraConfig: every option of `tune qlora`, for the command line and the library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsmith.errors import UsageError, quoted
from bitsmith.system.machine import check_threads
from bitsmith.system.options import REQUIRED, check_types, option
from bitsmith.texts.sources import names_of
from bitsmith.tune.names import ALL

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = {  # name -> its name in transformers
    "adamw": "adamw_torch",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of every training. Raises UsageError for a value that is never valid."""

    out: str | Path = option(REQUIRED, "-o", group="Output", metavar="DIR", help="Folder of the result.")
    context: int | None = option(
        None,
        "-c",
        group="Training",
        help="Tokens of an example, at most; default: 2048, or less with the model's context.",
    )
    epochs: float | None = option(None, group="Training", help="How often the data is gone through; default: once.")
    steps: int | None = option(None, group="Training", help="Number of steps; in place of --epochs.")
    batch: int = option(4, group="Training", help="Rows that are computed at once.")
    accumulate: int = option(4, group="Training", help="Batches whose gradients are added up to one step.")
    learning_rate: float = option(2e-4, "--learning-rate", "--lr", group="Training", help="Largest step size.")
    schedule: str = option(
        "cosine", group="Training", metavar="NAME", help="How the step size falls: cosine, linear or constant."
    )
    warmup: float = option(0.03, group="Training", help="Share of the steps in which the step size grows.")
    optimizer: str = option(
        "adamw",
        group="Training",
        metavar="NAME",
        help="adamw, adamw-8bit or paged-adamw-8bit (these two need bitsandbytes).",
    )
    seed: int = option(0, group="Training", help="Chooses the adapter's start and the order of the data.")
    dtype: str | None = option(
        None,
        group="Machine",
        metavar="TYPE",
        help="Type of what is not quantized, and of products; default: bfloat16 on cuda, float32 on the CPU.",
    )
    device: str | None = option(
        None, group="Machine", metavar="DEVICE", help="cpu, cuda or cuda:N; default: cuda if there is one."
    )
    threads: int | None = option(None, group="Machine", help="Number of threads; default: one per core.")
    revision: str | None = option(
        None, group="Source", metavar="NAME", help="Branch, tag or commit of a model of the hub."
    )
    force: bool = option(False, group="Output", help="Replace a result that exists, and start without enough memory.")

    def __post_init__(self) -> None:
        check_types(self)
        check_threads(self.threads)
        counts = {"--context": self.context, "--steps": self.steps, "--batch": self.batch}
        for flag, count in (*counts.items(), ("--accumulate", self.accumulate)):
            if count is not None and count < (2 if flag == "--context" else 1):
                raise UsageError(f"{flag}={count}: expected {2 if flag == '--context' else 1} or more.")
        if self.epochs is not None:
            _in_range("--epochs", self.epochs, above=0.0)
            if self.steps is not None:
                raise UsageError("--steps stands in place of --epochs; give one of them.")
        _in_range("--learning-rate", self.learning_rate, above=0.0)
        _in_range("--warmup", self.warmup, least=0.0, below=1.0)
        _one_of("--schedule", self.schedule, SCHEDULES)
        _one_of("--optimizer", self.optimizer, tuple(OPTIMIZERS))
        if self.dtype is not None:
            _one_of("--dtype", self.dtype, DTYPES)
        if self.seed < 0:
            raise UsageError(f"--seed={self.seed}: expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class QloraConfig(TrainConfig):
    """All options of `tune qlora` except the base."""

    data: str | Path | Sequence[str | Path] = option(
        REQUIRED,
        group="Data",
        metavar="FILE",
        help="A .jsonl, .json or .parquet file of chats, prompts with completions, or texts; a text file; owner/name"
        "[:FILE] of the hub; repeatable.",
    )
    eval_data: str | Path | Sequence[str | Path] | None = option(
        None, group="Data", metavar="FILE", help="Data that is not trained on, to measure the loss; repeatable."
    )
    packing: bool = option(
        False, group="Data", help="Several examples in a row, which do not see each other; needs no filling."
    )
    format: str | None = option(
        None,
        group="Method",
        metavar="NAME",
        help="Format of the frozen base: nf4-dq (the default), int4-g64, q4_k, ...; bf16, f16 or f32: not quantized.",
    )
    rank: int = option(16, group="Method", help="Rank of the adapters.")
    alpha: float | None = option(None, group="Method", help="Weight of the adapters, over the rank; default: twice it.")
    dropout: float = option(0.0, group="Method", help="Share of an adapter's inputs that are zeroed while training.")
    targets: str | Sequence[str] = option(
        ALL,
        group="Method",
        metavar="NAME",
        help="Layers with adapters: q_proj, up_proj, ...; repeatable; default: all "
        "linear layers, without head and routers.",
    )
    checkpointing: bool = option(
        True,
        "--checkpointing/--no-checkpointing",
        group="Training",
        help="Compute each layer again in the backward pass, which takes less memory.",
    )
    save_every: int | None = option(
        None, group="Training", help="Steps between checkpoints; default: a tenth of the run."
    )
    resume: bool = option(False, group="Training", help="Go on where a run into the same --out was stopped.")
    to: str | None = option(
        None, group="Output", metavar="TYPE", help="gguf-lora: also write the adapter as llama.cpp reads it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, count in (("--rank", self.rank), ("--save-every", self.save_every)):
            if count is not None and count < 1:
                raise UsageError(f"{flag.removeprefix('--')}: expected 1 or more, found {count}.")
        if self.alpha is not None:
            _in_range("--alpha", self.alpha, above=0.0)
        _in_range("--dropout", self.dropout, least=0.0, below=1.0)
        if self.to not in (None, "gguf-lora"):
            raise UsageError(f"--to={quoted(self.to)}: an adapter is written for PEFT, and as gguf-lora.")
        if self.resume and self.force:
            raise UsageError("--resume goes on with what --out holds, --force replaces it; give one of them.")

    @property
    def data_names(self) -> tuple[str | Path, ...]:
        """The files to train on."""
        return names_of(self.data)

    @property
    def eval_names(self) -> tuple[str | Path, ...]:
        """The files to measure on; empty for none."""
        return names_of(self.eval_data)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The layers with adapters."""
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets) or (ALL,)


def _in_range(
    flag: str, value: float, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> None:
    bad = not math.isfinite(value) or (least is not None and value < least)
    if bad or (above is not None and value <= above) or (below is not None and value >= below):
        said = {"at least": least, "more than": above, "less than": below}
        words = " and ".join(f"{how} {limit:g}" for how, limit in said.items() if limit is not None)
        raise UsageError(f"{flag}={value:g}: expected {words}.")


def _one_of(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{flag}={quoted(value)}: unknown; expected {', '.join(known)}.")

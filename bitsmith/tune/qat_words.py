"""Generated from QatConfig by `python bench/freeze_words.py`: keywords of `bitsmith.tune_qat`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict


class QatWords(TypedDict, total=False):
    """Options of `bitsmith.tune_qat`, see `bitsmith.tune.qat`."""

    train: str
    """scales: codes stay, scales, minima and norms are trained; all: the weights behind the codes too."""

    effort: str | None
    """Of the rounding before the training: fast (gptq), normal (learned) or high (learned, three times the steps);
    default: normal."""

    steps: int | None
    """Number of steps; default: 300 for scales, 600 for all."""

    batch: int
    """Windows of the text in a step."""

    training_tokens: int | None
    """Maximum number of tokens of the text to train on; default: 655,360 for scales, 1,310,720 for all, and at least
    those of the calibration."""

    teacher: str | Path | None
    """Learn this model's predictions, not those of the original; it must have the same tokenizer."""

    start: str | Path | None
    """Go on from the codes that this file of the model holds, in the same formats, in place of rounding."""

    optimizer: str
    """adam, or adam-8bit: its states take a quarter of the memory."""

    out: str | Path | None
    """Output file (gguf) or folder (others); with several --to: the folder for all outputs; default: a name made from
    the model and the format."""

    max_shard_size: str | None
    """Split the output into files of at most this size: 2GB, 512MiB."""

    dry_run: bool
    """Print only the plan: types, exact size, time and memory."""

    method: str | None
    """How codes are chosen: nearest, gptq or learned; awq and smoothquant rescale columns first: awq, awq+gptq, ...;
    default: nearest without calibration, else the one that loses least for the format and --effort."""

    pure: bool
    """One type for all matrices, no mix."""

    rules: Sequence[str]
    """Type for output tensors whose name contains a match of REGEX; repeatable; the first match wins."""

    keep: Sequence[str]
    """Tensors that stay in 16 bits (for gptq, awq, compressed and bnb); repeatable."""

    group_size: int | None
    """Number of weights that share a scale; -1: a whole row (for gptq, awq, compressed and bnb); default: 128, or 64
    for bnb."""

    symmetric: bool | None
    """--sym: without zero points; --asym: with zero points (for gptq, awq, compressed and bnb)."""

    double_quant: bool
    """Quantize the scales too (bnb): bnb/nf4 becomes bnb/nf4-dq, bnb/fp4 bnb/fp4-dq."""

    pre: str | None
    """Name of the pre-tokenizer, if it is not recognised."""

    requantize: bool
    """Accept a source that is already quantized."""

    force: bool
    """Replace an output that exists, and start although memory seems too small."""

    bits: float | None
    """Choose the type of each tensor so that the file has at most X bits per weight and loses least: 4.25."""

    size: str | None
    """The same for the size of all output files: 5.2GB, 800MiB."""

    fit: str | None
    """The same for a device or its memory, with the cache and what the runtime takes: rtx-4090, this, 24GB."""

    context: int | None
    """With --fit: number of tokens; default: 8192, or the model's context if less."""

    kv: str | None
    """With --fit: type of keys and values: f16 (default), q8_0, q4_0, ..."""

    tokens_per_second: float | None
    """With a budget: choose types that also generate X tokens a second on this machine, as `bench` measures."""

    recipe: str | Path | None
    """With a budget: write the chosen types into this YAML file. Without: use the types of this file."""

    executor: str | None
    """Where the tasks of the run are done: local (worker processes here), ray or ray://HOST:PORT (a cluster), slurm
    (writes an array job); default: all in this process."""

    workers: int | None
    """With --executor: number of workers; default: 1 for local, all of a Ray cluster."""

    work: str | None
    """With --executor: where workers leave their results: a folder that all of them see, or s3://... and other storage
    of fsspec; default: beside the output."""

    calibration: str | Path | Sequence[str | Path] | None
    """Text to run the model on, to find which columns of its matrices matter: default (a built-in text), a file of
    text, .jsonl, .json or .parquet, owner/name[:FILE] of the hub, self (the model's own text), or an importance file
    (.gguf, .dat); repeatable: texts are joined in order."""

    calibration_tokens: int | None
    """Maximum number of tokens; default: 128 windows."""

    calibration_context: int | None
    """Tokens per window; default: 512, or the model's context if that is less."""

    seed: int
    """Chooses the windows of the text; the same seed gives the same bytes."""

    calibration_all_experts: bool
    """Every token of the text counts for every expert, not only for those that its router chooses; for models with
    experts."""

    memory: str | None
    """Memory for hidden states, such as 4GB; what does not fit goes to disk; default: half of the free memory."""

    device: str | None
    """Where the model runs for calibration: cpu, cuda or cuda:N; default: cuda if there is one."""

    threads: int | None
    """Number of threads; default: one per core."""

    revision: str | None
    """Branch, tag or commit of a model of the hub."""

    fresh: bool
    """Start from the beginning, and remove what an interrupted run of this output has left."""

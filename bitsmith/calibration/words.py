"""Generated from ImatrixConfig by `python bench/freeze_words.py`: keywords of `bitsmith.imatrix`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Required, TypedDict


class ImatrixWords(TypedDict, total=False):
    """Options of `bitsmith.imatrix`, see `bitsmith.calibration.config`."""

    out: Required[str | Path]
    """NAME.gguf, or NAME.dat for llama.cpp's older format."""

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

    force: bool
    """Replace an output that exists."""

    fresh: bool
    """Start from the beginning, and remove what an interrupted run of this output has left."""

    executor: str | None
    """Where the tasks of the run are done: local (worker processes here), ray or ray://HOST:PORT (a cluster), slurm
    (writes an array job); default: all in this process."""

    workers: int | None
    """With --executor: number of workers; default: 1 for local, all of a Ray cluster."""

    work: str | None
    """With --executor: where workers leave their results: a folder that all of them see, or s3://... and other storage
    of fsspec; default: beside the output."""

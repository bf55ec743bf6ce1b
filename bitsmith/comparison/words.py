"""Generated from CompareConfig by `python bench/freeze_words.py`: keywords of `bitsmith.compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict


class CompareWords(TypedDict, total=False):
    """Options of `bitsmith.compare`, see `bitsmith.comparison.config`."""

    to: str | Sequence[str] | None
    """Formats to make of MODEL and to compare, with commas between them: q8_0,q4_k_m,gptq/int4; repeatable. What is
    made is kept in the cache."""

    method: str | None
    """How codes are chosen, see `bitsmith quantize`."""

    effort: str | None
    """fast, normal, high or max, see `bitsmith quantize`."""

    calibration: str | Path | Sequence[str | Path] | None
    """Text to calibrate on, see `bitsmith quantize`; it must share nothing with the texts of the comparison."""

    text: str | Path | Sequence[str | Path] | None
    """A text to measure on, by a name for the report; a file of text, .jsonl, .json or .parquet, or owner/name[:FILE]
    of the hub; repeatable; default: a built-in one."""

    context: int
    """Tokens per window."""

    max_windows: int | None
    """Stop after N windows of each text."""

    logits: str | Path | None
    """Take the original's predictions from a file of llama-perplexity --kl-divergence-base, made on the same text and
    context; for one text."""

    tasks: str | Sequence[str] | None
    """Questions with known answers, with commas between: made (continuations of the texts), a .csv file or a folder in
    MMLU's layout, a .jsonl file, NAME=FILE, or a task of lm-eval; repeatable."""

    shots: int | None
    """Examples before each question: from SUBJECT_dev beside a file or in ../dev, or as lm-eval has them; default:
    none, and lm-eval's own number."""

    task_limit: int | None
    """Ask at most N questions of a task of lm-eval."""

    generate: int
    """Tokens that every model writes after the same prompts, greedy; 0 for none."""

    prompt: str | Sequence[str] | None
    """A prompt for that; repeatable; default: three beginnings from the first text."""

    calibrated_on: str | Sequence[str] | None
    """Text that FILES were calibrated on: an error if a text of the comparison stands in it; repeatable."""

    within: float
    """Loss of quality, in per cent, that the verdict takes for small enough."""

    noise_floor: bool
    """Measure what rounding alone does to the original; this needs torch."""

    layers: bool
    """Measure the error of each matrix, for the heat map."""

    speed: bool
    """Also measure prompt and generation speed."""

    out: str | Path | Sequence[str | Path] | None
    """Write the report: NAME.html (one page for a browser), NAME.csv or NAME.json; repeatable."""

    card: str | Path | None
    """Write README.md for a repository of the hub into this folder."""

    write_logits: str | Path | None
    """Write the original's predictions for llama-perplexity --kl-divergence; for one text."""

    plots: str | Path | None
    """Write the charts as SVG and PNG into this folder."""

    ledger: str | Path | None
    """Where measurements are kept; default: in the user's data folder."""

    force: bool
    """Replace outputs that exist."""

    threads: int | None
    """Number of threads; default: one per core."""

    kernel: str | None
    """What computes the candidates, see `bitsmith eval`; default: exact."""

    revision: str | None
    """Branch, tag or commit of a model of the hub."""

    executor: str | None
    """Where the tasks of the run are done: local (worker processes here), ray or ray://HOST:PORT (a cluster), slurm
    (writes an array job); default: all in this process."""

    workers: int | None
    """With --executor: number of workers; default: 1 for local, all of a Ray cluster."""

    work: str | None
    """With --executor: where workers leave their results: a folder that all of them see, or s3://... and other storage
    of fsspec; default: beside the output."""

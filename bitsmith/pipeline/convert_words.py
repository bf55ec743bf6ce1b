"""Generated from ConvertConfig by `python bench/freeze_words.py`: keywords of `bitsmith.convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict


class ConvertWords(TypedDict, total=False):
    """Options of `bitsmith.convert`, see `bitsmith.pipeline.convert_config`."""

    to: str | None
    """bf16, f16 or f32: a Hugging Face folder of this type; gguf/bf16, gguf/f16 or gguf/f32: a GGUF file; mmproj: the
    parts for images of a model, for llama.cpp; gguf-lora: an adapter of PEFT's, for llama.cpp; default: the source's
    own types, every byte kept."""

    out: str | Path | None
    """Output file or folder; a name that ends in .gguf makes a GGUF file; default: a name made from the model."""

    max_shard_size: str | None
    """Split the output into files of at most this size: 2GB, 512MiB; default: one file."""

    model_name: str | None
    """The model's name in a GGUF file (general.name)."""

    dry_run: bool
    """Print only the plan: types, exact size, expected time."""

    force: bool
    """Replace an output that exists."""

    fresh: bool
    """Start from the beginning, and remove what an interrupted run of this output has left."""

    base: str | Path | None
    """The model of an adapter; default: the one that it names."""

    pre: str | None
    """Name of the pre-tokenizer, if it is not recognised."""

    revision: str | None
    """Branch, tag or commit of a model of the hub."""

    threads: int | None
    """Number of threads; default: one per core."""

    executor: str | None
    """Where the tasks of the run are done: local (worker processes here), ray or ray://HOST:PORT (a cluster), slurm
    (writes an array job); default: all in this process."""

    workers: int | None
    """With --executor: number of workers; default: 1 for local, all of a Ray cluster."""

    work: str | None
    """With --executor: where workers leave their results: a folder that all of them see, or s3://... and other storage
    of fsspec; default: beside the output."""

"""Generated from QloraConfig by `python bench/freeze_words.py`: keywords of `bitsmith.tune_qlora`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Required, TypedDict


class QloraWords(TypedDict, total=False):
    """Options of `bitsmith.tune_qlora`, see `bitsmith.tune.config`."""

    data: Required[str | Path | Sequence[str | Path]]
    """A .jsonl, .json or .parquet file of chats, prompts with completions, or texts; a text file; owner/name[:FILE] of
    the hub; repeatable."""

    eval_data: str | Path | Sequence[str | Path] | None
    """Data that is not trained on, to measure the loss; repeatable."""

    packing: bool
    """Several examples in a row, which do not see each other; needs no filling."""

    format: str | None
    """Format of the frozen base: nf4-dq (the default), int4-g64, q4_k, ...; bf16, f16 or f32: not quantized."""

    rank: int
    """Rank of the adapters."""

    alpha: float | None
    """Weight of the adapters, over the rank; default: twice it."""

    dropout: float
    """Share of an adapter's inputs that are zeroed while training."""

    targets: str | Sequence[str]
    """Layers with adapters: q_proj, up_proj, ...; repeatable; default: all linear layers, without head and routers."""

    checkpointing: bool
    """Compute each layer again in the backward pass, which takes less memory."""

    save_every: int | None
    """Steps between checkpoints; default: a tenth of the run."""

    resume: bool
    """Go on where a run into the same --out was stopped."""

    to: str | None
    """gguf-lora: also write the adapter as llama.cpp reads it."""

    out: Required[str | Path]
    """Folder of the result."""

    context: int | None
    """Tokens of an example, at most; default: 2048, or less with the model's context."""

    epochs: float | None
    """How often the data is gone through; default: once."""

    steps: int | None
    """Number of steps; in place of --epochs."""

    batch: int
    """Rows that are computed at once."""

    accumulate: int
    """Batches whose gradients are added up to one step."""

    learning_rate: float
    """Largest step size."""

    schedule: str
    """How the step size falls: cosine, linear or constant."""

    warmup: float
    """Share of the steps in which the step size grows."""

    optimizer: str
    """adamw, adamw-8bit or paged-adamw-8bit (these two need bitsandbytes)."""

    seed: int
    """Chooses the adapter's start and the order of the data."""

    dtype: str | None
    """Type of what is not quantized, and of products; default: bfloat16 on cuda, float32 on the CPU."""

    device: str | None
    """cpu, cuda or cuda:N; default: cuda if there is one."""

    threads: int | None
    """Number of threads; default: one per core."""

    revision: str | None
    """Branch, tag or commit of a model of the hub."""

    force: bool
    """Replace a result that exists, and start without enough memory."""

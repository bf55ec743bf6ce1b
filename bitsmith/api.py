"""The library's functions. Their names and options are those of the command line."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.errors import Words
from bitsmith.models.checkpoint import Checkpoint, llama_cpp_differences, open_checkpoint, source_warnings
from bitsmith.system.machine import check_threads, cores, peak_memory
from bitsmith.system.options import check_arguments
from bitsmith.system.progress import Report, silent

__all__ = [
    "QuantizeConfig",
    "bench",
    "compare",
    "convert",
    "convert_adapter",
    "evaluate",
    "hand_over",
    "imatrix",
    "inspect",
    "list_models",
    "load",
    "merge",
    "plan",
    "publish",
    "pull",
    "quantize",
    "quantize_each",
    "remove",
    "tune_qat",
    "tune_qlora",
]

if TYPE_CHECKING:
    from bitsmith.calibration.run import make_imatrix as imatrix
    from bitsmith.comparison.running import compare
    from bitsmith.evaluation import Evaluation
    from bitsmith.evaluation.speed import Speed
    from bitsmith.handover.handing import hand_over
    from bitsmith.handover.publishing import publish
    from bitsmith.models.inspection import Inspection
    from bitsmith.models.pulling import pull
    from bitsmith.models.removal import remove
    from bitsmith.models.stored import list_models
    from bitsmith.pipeline.config import QuantizeConfig
    from bitsmith.pipeline.conversion import convert
    from bitsmith.pipeline.quantization import quantize, quantize_each
    from bitsmith.planner.report import plan
    from bitsmith.runtime.language_model import LanguageModel
    from bitsmith.tune.gguf_lora import convert_adapter
    from bitsmith.tune.merge import merge
    from bitsmith.tune.qat import tune_qat
    from bitsmith.tune.qlora import tune_qlora

_LOG = logging.getLogger(__name__)
_ELSEWHERE = {  # imported at first use, so that running a model does not import the code that quantizes
    "QuantizeConfig": ("bitsmith.pipeline.config", "QuantizeConfig"),
    "compare": ("bitsmith.comparison.running", "compare"),
    "convert": ("bitsmith.pipeline.conversion", "convert"),
    "convert_adapter": ("bitsmith.tune.gguf_lora", "convert_adapter"),
    "hand_over": ("bitsmith.handover.handing", "hand_over"),
    "imatrix": ("bitsmith.calibration.run", "make_imatrix"),
    "list_models": ("bitsmith.models.stored", "list_models"),
    "merge": ("bitsmith.tune.merge", "merge"),
    "plan": ("bitsmith.planner.report", "plan"),
    "publish": ("bitsmith.handover.publishing", "publish"),
    "pull": ("bitsmith.models.pulling", "pull"),
    "quantize": ("bitsmith.pipeline.quantization", "quantize"),
    "quantize_each": ("bitsmith.pipeline.quantization", "quantize_each"),
    "remove": ("bitsmith.models.removal", "remove"),
    "tune_qat": ("bitsmith.tune.qat", "tune_qat"),
    "tune_qlora": ("bitsmith.tune.qlora", "tune_qlora"),
}


def __getattr__(name: str) -> Any:
    """Import a function of _ELSEWHERE at its first use."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module 'bitsmith.api' has no attribute {name!r}")
    module, function = _ELSEWHERE[name]
    return vars(import_module(module))[function]


def load(
    model: str | Path,
    *,
    threads: int | None = None,
    kernel: str | None = None,
    cache_type: str = "f16",
    context: int | None = None,
    format: str | None = None,
    adapter: str | Path | None = None,
    inputs: str | None = None,
    compute_dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    report: Report = silent,
) -> LanguageModel:
    """Load a model for running: `.chat(messages)`, `.generate(prompt, max_tokens=..., temperature=...)`, `.logits`.

    `.stream_chat` and `.stream` give the text in pieces.

    threads: number of threads for arithmetic; None for one a core (with torch, for torch's own choice)
    kernel: "int16" (the C++ core; inputs of packed matrices are rounded to 15 bits, in prompts of 16-bit models to
        bfloat16), "int8" (those of prompts to int8, in about half the time), "exact" (the core with float32 inputs) or
        "torch" (the reference); None for int16 if the core can run the model
    cache_type: type of keys and values: "f16", "q8_0" or "f32"; only the int16 and int8 kernels have a choice
    context: number of tokens, prompt and text together, that the model may hold; None for all that it was trained for
    format: format that the linear layers get while they are read, one slab after the other: "nf4", "int4-g64", every
        name of a native folder; embedding, output head and routers stay. None: as the file has them
    adapter: a folder in PEFT's layout: LoRA on linear layers, added to products; weights stay stored as they are
    inputs: how inputs of linear layers are rounded: "none", "int8", "fp8", "llm.int8" (Dettmers et al. 2022),
        "llm.int8:THRESHOLD"; None: as the file says
    compute_dtype: "float32", "bfloat16" or "float16": weights stay stored as they are, and both factors of a product
        are rounded to this type; None: what the kernel does
    device: "cpu", "cuda" or "cuda:N"; None is "cpu"
    revision: branch, tag or commit of a hub model
    report: called with the progress
    Raises BitsmithError.
    """
    check_arguments(load, locals())
    check_threads(threads)
    checkpoint = _open(model, revision, format=format, inputs=inputs, adapter=adapter)
    if context is not None:
        from bitsmith.runtime.load import with_context

        checkpoint = with_context(checkpoint, context)
    return _load(
        checkpoint,
        threads,
        kernel,
        "int16",
        cache_type=cache_type,
        compute_dtype=compute_dtype,
        device=device,
        report=report,
    )


def _open(
    model: str | Path,
    revision: str | None,
    *,
    format: str | None = None,
    inputs: str | None = None,
    adapter: str | Path | None = None,
) -> Checkpoint:
    """The checkpoint, with what the user asks of its linear layers. Raises UsageError for unknown names."""
    checkpoint = open_checkpoint(model, revision=revision)
    if format is None and inputs is None and adapter is None:
        return checkpoint
    from bitsmith.models.overrides import Overrides
    from bitsmith.quant.formats import get_format

    low = None
    if adapter is not None:
        from bitsmith.models.adapter import read_adapter

        low = read_adapter(adapter, checkpoint)
    overrides = Overrides(format or "", inputs or "", low)
    if format is not None:
        get_format(format)
    if inputs is not None:
        _LOG.info("inputs of linear layers: %s", overrides.input_rounding)
    return replace(checkpoint, overrides=overrides)


def _load(
    checkpoint: Checkpoint,
    threads: int | None,
    kernel: str | None,
    default: str,
    *,
    cache_type: str = "f16",
    compute_dtype: str | None = None,
    device: str | None = None,
    report: Report = silent,
) -> LanguageModel:
    from bitsmith.runtime.load import check_cache, choose_kernel, computing, load_language_model

    compute, kernel, default = computing(compute_dtype, device, kernel, default)
    chosen = choose_kernel(checkpoint, kernel, default=default)
    check_cache(cache_type, chosen)
    return load_language_model(
        checkpoint, kernel=chosen, threads=threads, cache_type=cache_type, compute=compute, report=report
    )


def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    text: str | Path | Sequence[str | Path] | None = None,
    context: int = 512,
    max_windows: int | None = None,
    threads: int | None = None,
    kernel: str | None = None,
    adapter: str | Path | None = None,
    inputs: str | None = None,
    compute_dtype: str | None = None,
    revision: str | None = None,
    report: Report = silent,
) -> Evaluation:
    """Perplexity of a model on a text, and its divergence from the model `against`.

    against: the original model; None measures perplexity only
    text: a text or a list of texts, which are joined in order: files of UTF-8 text, .jsonl, .json and .parquet files of
        chats or texts, data sets of the hub ("owner/name", "owner/name:FILE"), "default"; None for the built-in text
    context: number of tokens in a window
    max_windows: largest number of windows; None for all
    threads, revision, report: see `load`
    kernel: kernel of `model`, see `load`. None is "exact" if the core can run the model, so that only the weights cause
        loss; "int8" adds the loss of rounded inputs. `against` always runs on "exact" or "torch".
    adapter: of `model`, see `load`
    inputs, compute_dtype: of `model`, see `load`; both add their loss
    Raises BitsmithError.
    """
    check_arguments(evaluate, locals())
    from bitsmith.evaluation import evaluate as measure

    check_threads(threads)
    checkpoint = _open(model, revision, inputs=inputs, adapter=adapter)
    differences = [f"this does not show in the result: {each}" for each in llama_cpp_differences(checkpoint)]
    loaded = _load(checkpoint, threads, kernel, "exact", compute_dtype=compute_dtype, report=report)
    exactly = kernel if kernel == "torch" else None
    original = None if against is None else _load(open_checkpoint(against), threads, exactly, "exact", report=report)
    result = measure(
        loaded,
        against=original,
        text=text,
        context=context,
        max_windows=max_windows,
        report=report,
    )
    return replace(result, notes=(*differences, *result.notes))


def bench(
    model: str | Path,
    *,
    prompt: int | None = None,
    gen: int | None = None,
    repeat: int = 5,
    parallel: Sequence[int] = (),
    threads: int | None = None,
    kernel: str | None = None,
    cache_type: str = "f16",
    inputs: str | None = None,
    compute_dtype: str | None = None,
    revision: str | None = None,
    report: Report = silent,
) -> Speed:
    """Tokens a second of a model, for a prompt and for generation, and the other figures of `Speed`.

    prompt, gen: number of tokens of each; 0 skips it; None is 512 and 128, or less if the model's context is shorter
    repeat: number of measurements of each, after a warm-up
    parallel: numbers of texts that are generated together, each measured apart
    threads: number of threads for arithmetic; None for one a core
    kernel, cache_type, inputs, compute_dtype, revision, report: see `load`
    Raises BitsmithError.
    """
    check_arguments(bench, locals())
    from bitsmith.evaluation.bandwidth import buffer_for, read_bandwidth
    from bitsmith.evaluation.speed import Speed, check_counts, check_parallel, measure_parallel, measure_speed

    started = time.perf_counter()
    check_threads(threads)
    count = cores() if threads is None else threads
    checkpoint = _open(model, revision, inputs=inputs)
    prompt, gen = check_counts(checkpoint.config.context, prompt=prompt, gen=gen, repeat=repeat)
    check_parallel(parallel, gen)
    loaded = _load(
        checkpoint, count, kernel, "int16", cache_type=cache_type, compute_dtype=compute_dtype, report=report
    )
    load_seconds = time.perf_counter() - started
    rates = measure_speed(loaded, prompt=prompt, gen=gen, repeat=repeat, report=report)
    together = measure_parallel(loaded, parallel, gen=gen, repeat=repeat, report=report)
    peak = peak_memory()  # read now, since measuring the bandwidth takes memory too
    crowded = f"{count} threads on {cores()} cores wait for each other; give --threads={cores()} or fewer."
    return Speed(
        loaded.name,
        count,
        *rates,
        load_seconds,
        peak,
        loaded.token_bytes,
        read_bandwidth(count, size=buffer_for(loaded.token_bytes)),
        loaded.choices,
        (Words(crowded),) if count > cores() else (),
        together,
    )


def inspect(
    model: str | Path, *, verify: bool = False, revision: str | None = None, report: Report = silent
) -> Inspection:
    """Metadata, tensors and sizes of a file.

    verify: also decode and check all tensors; what is wrong is listed in `problems`
    revision, report: see `load`
    Raises BitsmithError if the file cannot be opened.
    """
    check_arguments(inspect, locals())
    from bitsmith.models.ends import end_notes
    from bitsmith.models.inspection import inspect as look

    checkpoint = open_checkpoint(model, revision=revision)
    told = (*source_warnings(checkpoint, quantizes=False), *llama_cpp_differences(checkpoint))
    notes = told if checkpoint.foreign is None else (str(checkpoint.foreign),)
    result = look(checkpoint.source, verify=verify, report=report)
    return replace(result, notes=(*notes, *end_notes(checkpoint)))

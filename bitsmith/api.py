"""The library's functions, with the words of the command line."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.system.machine import check_threads, cores, peak_memory
from bitsmith.system.progress import Report, silent

__all__ = ["QuantizeConfig", "bench", "evaluate", "imatrix", "inspect", "load", "plan", "quantize", "quantize_each"]

if TYPE_CHECKING:
    from bitsmith.calibration.run import make_imatrix as imatrix
    from bitsmith.evaluation import Evaluation
    from bitsmith.evaluation.speed import Speed
    from bitsmith.models.inspection import Inspection
    from bitsmith.pipeline.config import QuantizeConfig
    from bitsmith.pipeline.quantization import quantize, quantize_each
    from bitsmith.planner.report import plan
    from bitsmith.runtime.language_model import LanguageModel

_ELSEWHERE = {  # imported when first used: who runs a model does not wait for what quantizes one
    "QuantizeConfig": ("bitsmith.pipeline.config", "QuantizeConfig"),
    "imatrix": ("bitsmith.calibration.run", "make_imatrix"),
    "plan": ("bitsmith.planner.report", "plan"),
    "quantize": ("bitsmith.pipeline.quantization", "quantize"),
    "quantize_each": ("bitsmith.pipeline.quantization", "quantize_each"),
}


def __getattr__(name: str) -> Any:
    """The functions whose modules are not imported yet."""
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
    revision: str | None = None,
    report: Report = silent,
) -> LanguageModel:
    """Load a model for running: `.generate(prompt, max_tokens=..., sampling=Sampling(...))`, `.stream`, `.logits`.

    threads: for arithmetic; None: one a core, on torch its own choice
    kernel: "int8" (the C++ core; inputs of packed matrices are rounded to int8), "exact" (the core with float32
        inputs) or "torch" (the reference); None: int8 if the core can run the model
    cache_type: of keys and values: "f16", "q8_0", or "f32"; only the int8 kernel has a choice
    Raises BitsmithError.
    """
    check_threads(threads)
    checkpoint = open_checkpoint(model, revision=revision)
    return _load(checkpoint, threads, kernel, "int8", cache_type=cache_type, report=report)


def _load(
    checkpoint: Checkpoint,
    threads: int | None,
    kernel: str | None,
    default: str,
    *,
    cache_type: str = "f16",
    report: Report = silent,
) -> LanguageModel:
    from bitsmith.runtime.load import check_cache, choose_kernel, load_language_model

    chosen = choose_kernel(checkpoint, kernel, default=default)
    check_cache(cache_type, chosen)
    return load_language_model(checkpoint, kernel=chosen, threads=threads, cache_type=cache_type, report=report)


def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    text: str | Path | None = None,
    context: int = 512,
    max_windows: int | None = None,
    threads: int | None = None,
    kernel: str | None = None,
    revision: str | None = None,
    report: Report = silent,
) -> Evaluation:
    """Perplexity of a model on a text, and its divergence from the model `against`.

    text: a UTF-8 file; None takes the built-in text. context: tokens in a window
    kernel: what `model` runs on, see `load`; None: "exact" where the core can run it, so that the loss is that of the
        weights alone; "int8" adds what rounding inputs costs. `against` always runs exactly.
    Raises BitsmithError.
    """
    from bitsmith.evaluation import evaluate as measure

    check_threads(threads)
    loaded = _load(open_checkpoint(model, revision=revision), threads, kernel, "exact", report=report)
    exactly = kernel if kernel == "torch" else None
    original = None if against is None else _load(open_checkpoint(against), threads, exactly, "exact", report=report)
    return measure(
        loaded,
        against=original,
        text=None if text is None else Path(text),
        context=context,
        max_windows=max_windows,
        report=report,
    )


def bench(
    model: str | Path,
    *,
    prompt: int | None = None,
    gen: int | None = None,
    repeat: int = 5,
    threads: int | None = None,
    kernel: str | None = None,
    cache_type: str = "f16",
    revision: str | None = None,
    report: Report = silent,
) -> Speed:
    """Tokens a second of a model, for a prompt and for generation; what else it reports, see `Speed`.

    prompt, gen: tokens of each; 0 leaves one out, None takes 512 and 128, or the model's context where that is less
    repeat: measurements of each, after a warm-up. threads: for arithmetic; None: one a core
    kernel, cache_type: see `load`
    Raises BitsmithError.
    """
    from bitsmith.evaluation.bandwidth import read_bandwidth
    from bitsmith.evaluation.speed import Speed, check_counts, measure_speed

    started = time.perf_counter()
    check_threads(threads)
    count = cores() if threads is None else threads
    checkpoint = open_checkpoint(model, revision=revision)
    prompt, gen = check_counts(checkpoint.config.context, prompt=prompt, gen=gen, repeat=repeat)
    loaded = _load(checkpoint, count, kernel, "int8", cache_type=cache_type, report=report)
    load_seconds = time.perf_counter() - started
    rates = measure_speed(loaded, prompt=prompt, gen=gen, repeat=repeat, report=report)
    peak = peak_memory()  # before measuring the memory, which takes some
    crowded = f"{count} threads on {cores()} cores: they wait for each other; give --threads {cores()} or fewer."
    return Speed(
        loaded.name,
        count,
        *rates,
        load_seconds,
        peak,
        loaded.token_bytes,
        read_bandwidth(count),
        (crowded,) if count > cores() else (),
    )


def inspect(
    model: str | Path, *, verify: bool = False, revision: str | None = None, report: Report = silent
) -> Inspection:
    """What is in a file: metadata, tensors, sizes; with `verify` all of it decoded and checked.

    Raises BitsmithError where it cannot be opened; what `verify` finds is listed in `problems`.
    """
    from bitsmith.models.inspection import inspect as look

    return look(open_checkpoint(model, revision=revision).source, verify=verify, report=report)

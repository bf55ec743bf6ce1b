"""The library's functions, with the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.calibration.run import make_imatrix as imatrix
from bitsmith.checkpoint import open_checkpoint
from bitsmith.choices import Choices
from bitsmith.errors import UsageError
from bitsmith.progress import Report, silent
from bitsmith.quantization import quantize, quantize_each

__all__ = ["Choices", "evaluate", "imatrix", "inspect", "load", "quantize", "quantize_each"]

if TYPE_CHECKING:
    from bitsmith.evaluation import Evaluation
    from bitsmith.inspection import Inspection
    from bitsmith.model.language_model import LanguageModel


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
    kernel: "native" (the C++ core; inputs of packed matrices are rounded to int8), "exact" (the core with float32
        inputs) or "torch" (the reference); None: native where the core can run the model
    cache_type: of keys and values: "f16", "q8_0", or "f32"; only the native kernel has a choice
    Raises BitsmithError.
    """
    return _load(model, threads, kernel, "native", cache_type=cache_type, revision=revision, report=report)


def _load(
    model: str | Path,
    threads: int | None,
    kernel: str | None,
    default: str,
    *,
    cache_type: str = "f16",
    revision: str | None = None,
    report: Report = silent,
) -> LanguageModel:
    from bitsmith.model.load import choose_kernel, load_language_model

    _check_threads(threads)
    checkpoint = open_checkpoint(model, revision=revision)
    chosen = choose_kernel(checkpoint, kernel, default=default)
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
        weights alone; "native" adds what rounding inputs costs. `against` always runs exactly.
    Raises BitsmithError.
    """
    from bitsmith.evaluation import evaluate as measure

    loaded = _load(model, threads, kernel, "exact", revision=revision, report=report)
    exactly = kernel if kernel == "torch" else None
    original = None if against is None else _load(against, threads, exactly, "exact", report=report)
    return measure(
        loaded,
        against=original,
        text=None if text is None else Path(text),
        context=context,
        max_windows=max_windows,
        report=report,
    )


def inspect(
    model: str | Path, *, verify: bool = False, revision: str | None = None, report: Report = silent
) -> Inspection:
    """What is in a file: metadata, tensors, sizes; with `verify` all of it decoded and checked.

    Raises BitsmithError where it cannot be opened; what `verify` finds is listed in `problems`.
    """
    from bitsmith.inspection import inspect as look

    return look(open_checkpoint(model, revision=revision).source, verify=verify, report=report)


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: at least one thread is needed.")

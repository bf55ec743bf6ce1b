"""Loads one model at a time for measuring, and says which kernel it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.models.checkpoint import Checkpoint
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.runtime.language_model import LanguageModel

EXACT = "exact"


def kernel_of(checkpoint: Checkpoint, wanted: str | None) -> str:
    """The kernel that measures a model: the wanted one, else exact where the core can, else torch.

    Raises UsageError or UnsupportedError where the wanted one cannot.
    """
    from bitsmith.runtime.load import choose_kernel

    return choose_kernel(checkpoint, wanted, default=EXACT)


def load(
    checkpoint: Checkpoint,
    kernel: str,
    *,
    threads: int | None = None,
    dtype: str | None = None,
    report: Report = silent,
) -> LanguageModel:
    """Load a model. dtype: type of products, "float32" or "bfloat16"; None: what the kernel does"""
    from bitsmith.runtime.load import computing, load_language_model

    compute, chosen, _ = computing(dtype, None, kernel, kernel)
    return load_language_model(checkpoint, kernel=chosen or kernel, threads=threads, compute=compute, report=report)


class OneModel:
    """The one model in memory. Another one takes its place."""

    def __init__(self, threads: int | None, report: Report) -> None:
        self._threads, self._report = threads, report
        self._kept: tuple[tuple[str, str, str | None], LanguageModel] | None = None

    def get(self, checkpoint: Checkpoint, kernel: str, dtype: str | None = None) -> LanguageModel:
        """The model, loaded unless it is the one in memory. Raises BitsmithError."""
        key = str(checkpoint.source.path), kernel, dtype
        if self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        self._kept = None  # before the next one takes memory
        model = load(checkpoint, kernel, threads=self._threads, dtype=dtype, report=self._report)
        self._kept = key, model
        return model

    def release(self) -> None:
        """Give its memory back."""
        self._kept = None

"""Runs one model over the windows of a domain: the original once, every candidate against what was kept of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bitsmith.comparison.reference_logits import ReferenceLogits, ReferenceRows, ReferenceWriter, encode_rows
from bitsmith.comparison.scores import TokenScores, joined
from bitsmith.errors import FileError
from bitsmith.evaluation.divergence import compare
from bitsmith.evaluation.measure import Scorer, batch_of, scored_logits
from bitsmith.evaluation.windows import Windows
from bitsmith.system.machine import cores
from bitsmith.system.progress import Progress, Report, silent

_log = logging.getLogger(__name__)


def open_reference(path: Path, key: str) -> ReferenceLogits | None:
    """Kept predictions of the original; None if there are none. A damaged file is removed, with a word in the log."""
    if not path.is_file():
        return None
    try:
        found = ReferenceLogits(path, key)
        found.check()
    except FileError as error:
        _log.warning("%s They are computed again.", error)
        path.unlink(missing_ok=True)
        return None
    return found


def record_original(
    model: Scorer, windows: Windows, writer: ReferenceWriter, *, threads: int | None = None, report: Report = silent
) -> None:
    """Run the original over all windows, and keep its predictions."""
    with ThreadPoolExecutor(threads or cores()) as pool:
        for start, logits in _logits(model, windows, report):
            targets = windows.targets[start : start + len(logits)]
            for rows in pool.map(_encoded, logits, targets):
                writer.add(rows)


def _encoded(logits: np.ndarray, targets: np.ndarray) -> ReferenceRows:
    return encode_rows(logits, targets)


def score_original(reference: ReferenceLogits, windows: Windows) -> TokenScores:
    """What the original itself does on each token."""
    losses, right = [], []
    for number, rows in enumerate(reference):
        losses.append(rows.losses)
        right.append(rows.top == windows.targets[number])
    tokens = windows.targets.size
    return TokenScores(
        np.concatenate(losses), np.zeros(tokens), np.ones(tokens, bool), np.concatenate(right).astype(bool)
    )


def score(
    model: Scorer,
    windows: Windows,
    reference: ReferenceLogits,
    *,
    threads: int | None = None,
    report: Report = silent,
) -> TokenScores:
    """What a model does on each token, beside the original.

    windows: the first of those that the reference was made of, or all
    Raises TensorError for logits that are not finite.
    """
    parts: list[TokenScores] = []
    with ThreadPoolExecutor(threads or cores()) as pool:
        for start, logits in _logits(model, windows, report):
            kept = [reference.window(number) for number in range(start, start + len(logits))]
            targets = windows.targets[start : start + len(logits)]
            for one, rows, wanted in zip(logits, kept, targets, strict=True):
                parts += pool.map(lambda at: _scored(one[at], rows, at, wanted[at]), _slices(len(one), threads))  # noqa: B023
    return joined(parts)


def _slices(rows: int, threads: int | None) -> list[slice]:
    step = max(1, -(-rows // (threads or cores())))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _scored(logits: np.ndarray, reference: ReferenceRows, at: slice, targets: np.ndarray) -> TokenScores:
    part = ReferenceRows(*(values[at] for values in vars(reference).values()))
    tokens = compare(logits, part.logits(), targets)
    top = logits.argmax(axis=1)
    narrower = logits.shape[1] < part.codes.shape[1]
    same = tokens.same_top if narrower else top == part.top
    return TokenScores(tokens.losses, tokens.kld, same, top == targets)


def _logits(model: Scorer, windows: Windows, report: Report) -> Iterator[tuple[int, np.ndarray]]:
    """The first window of each batch, and its logits float32 [windows, rows, vocab]."""
    batch, total = batch_of(windows.context, model.config.vocab), len(windows)
    report(Progress("evaluate", 0, total, "windows"))
    for start in range(0, total, batch):
        tokens = windows.tokens[start : start + batch]
        rows = scored_logits(model, tokens, windows.first)
        yield start, rows.reshape(len(tokens), -1, rows.shape[1])
        report(Progress("evaluate", min(start + batch, total), total, "windows"))

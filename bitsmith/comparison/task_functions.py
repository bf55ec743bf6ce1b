"""The functions of tasks of `compare`: windows of a text, which the original and every candidate are run over."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.comparison.loading import load
from bitsmith.comparison.measure import record_original, score, score_original
from bitsmith.comparison.reference_logits import ReferenceLogits, ReferenceWriter
from bitsmith.errors import FileError
from bitsmith.evaluation.windows import Windows
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.models.for_workers import files_of
from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.state import State

_KEY = "0" * 64  # of predictions that no other task reads


def described(checkpoint: Checkpoint, path: str, kernel: str) -> dict[str, Any]:
    """A model as a worker opens it, for JSON. path: for workers; kernel: that measures it"""
    return {"path": path, "kernel": kernel, "files": files_of(checkpoint)}


def _opened(told: Mapping[str, Any]) -> Checkpoint:
    checkpoint = open_checkpoint(told["path"])
    if files_of(checkpoint) != told["files"]:
        raise FileError(f"{told['path']} is another model where this worker runs; give it the same files.")
    return checkpoint


def score_windows(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """What the original and each candidate do on each token of some windows.

    arguments: original and candidates, see `described`; start, stop: the windows
    inputs: the windows' tokens, int64 [windows, context]
    Returns `TokenScores` as bytes: "original", and each candidate by its number.
    """
    start, stop = int(arguments["start"]), int(arguments["stop"])
    windows = Windows(inputs[0].rows("tokens", start, stop))
    original, candidates = arguments["original"], arguments["candidates"]
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="bitsmith-") as folder:
        path = Path(folder) / "reference"
        checkpoint = _opened(original)
        vocab, rows = checkpoint.config.vocab, windows.targets.shape[1]
        with ReferenceWriter(path, _KEY, windows=len(windows), rows=rows, vocab=vocab) as writer:
            record_original(
                load(checkpoint, original["kernel"], threads=place.threads), windows, writer, threads=place.threads
            )
            writer.finish()
        with ReferenceLogits(path, _KEY) as reference:
            found["original"] = _bytes(score_original(reference, windows).to_bytes())
            for number, told in enumerate(candidates):
                model = load(_opened(told), told["kernel"], threads=place.threads)
                found[str(number)] = _bytes(score(model, windows, reference, threads=place.threads).to_bytes())
    return {"tokens": windows.targets.size}, found


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


TASKS: dict[str, Function] = {"windows": score_windows}

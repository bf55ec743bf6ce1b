"""The error of each matrix: of its values in a candidate beside those of the original.

It is measured. Where a file's columns were rescaled against each other (AWQ, SmoothQuant) its values cannot be compared
with the original's; then the manifest's errors are taken, if bitsmith made the file.
"""

from __future__ import annotations

import numpy as np

from bitsmith.errors import BitsmithError
from bitsmith.models.arch.names import is_permuted, permute_rows, unpermute_rows
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.manifests import manifests_of
from bitsmith.system.progress import Progress, Report, silent

MOST_WEIGHTS = 1 << 22  # of one matrix; of a larger one, rows in equal distances are read
_SLABS = 16  # pieces that the rows of a large matrix are read in
_RESCALED = 0.05  # relative difference of a norm's weights that no rounding makes


def tensor_errors(original: Checkpoint, candidate: Checkpoint, report: Report = silent) -> dict[str, float]:
    """Sum of squared errors over sum of squared weights, by GGUF's name of each matrix.

    Empty where the two cannot be compared. Raises BitsmithError for tensors that cannot be read.
    """
    original = original.laid_out(candidate.naming)
    ours, theirs = original.reader.tensors, candidate.reader.tensors
    names = [
        name
        for name, place in candidate.places.items()
        if name in original.places and place in theirs and original.places[name] in ours
    ]
    if _rescaled(original, candidate, [name for name in names if "_norm" in name]):
        return manifest_errors(candidate)
    matrices = [name for name in names if theirs[candidate.places[name]].rows > 1]
    found = {}
    for done, name in enumerate(matrices):
        report(Progress("layers", done, len(matrices), "tensors", name))
        if ours[original.places[name]].shape == theirs[candidate.places[name]].shape:
            found[name] = _error(original, candidate, name)
    report(Progress("layers", len(matrices), len(matrices), "tensors"))
    return found


def manifest_errors(candidate: Checkpoint) -> dict[str, float]:
    """What the manifest says, by GGUF's names; empty without one."""
    try:
        records = [record for manifest in manifests_of(candidate.source) for record in manifest.tensors]
    except BitsmithError:
        return {}
    if candidate.naming == "gguf":
        return {record.name: record.error for record in records}
    named = ((candidate.names.gguf(record.name), record.error) for record in records)
    return {name: error for name, error in named if name is not None}


def _rescaled(original: Checkpoint, candidate: Checkpoint, norms: list[str]) -> bool:
    """Whether a norm in front of matrices differs, since scales were folded into it."""
    for name in norms:
        first = original.reader.rows(original.places[name]).reshape(-1)
        second = candidate.reader.rows(candidate.places[name]).reshape(-1)
        if first.shape != second.shape or not np.allclose(first, second, rtol=_RESCALED, atol=1e-3):
            return True
    return False


def _error(original: Checkpoint, candidate: Checkpoint, name: str) -> float:
    info = candidate.reader.tensors[candidate.places[name]]
    turned = is_permuted(name) and _interleaved(original) != _interleaved(candidate)
    squares = errors = 0.0
    for start, stop in _slabs(info.rows, info.cols, whole=turned):
        true = original.reader.rows(original.places[name], start, stop)
        if turned:
            heads = original.config.heads if ".attn_q." in name else original.config.kv_heads
            true = permute_rows(true, heads) if _interleaved(candidate) else unpermute_rows(true, heads)
        difference = true - candidate.reader.rows(candidate.places[name], start, stop)
        squares += float(np.square(true, dtype=np.float64).sum())
        errors += float(np.square(difference, dtype=np.float64).sum())
    return errors / squares if squares else 0.0


def _interleaved(checkpoint: Checkpoint) -> bool:
    return checkpoint.config.rope.interleaved


def _slabs(rows: int, cols: int, *, whole: bool) -> list[tuple[int, int]]:
    """Ranges of rows; all of them unless there are too many."""
    most = MOST_WEIGHTS // max(cols, 1)
    if whole:
        return [(0, rows)]
    if rows <= most:
        step = max(1, most // _SLABS)
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]
    length = max(1, most // _SLABS)
    return [(start, start + length) for start in np.linspace(0, rows - length, _SLABS).astype(int).tolist()]

"""How workers open a model: by its path, which must lead to the same files where they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitsmith.models.checkpoint import REFERENCE, Checkpoint
from bitsmith.work.key import head_hash

_PACKAGE = Path(__file__).parents[1]


def name_for_workers(checkpoint: Checkpoint) -> str:
    """How workers open a model: by its path, which must lead to the same files there."""
    path = checkpoint.source.path.absolute()
    return REFERENCE if checkpoint.name == REFERENCE and path.is_relative_to(_PACKAGE) else str(path)


def files_of(checkpoint: Checkpoint) -> list[list[Any]]:
    """Name, size and hash of the beginning of every file of the weights: the same wherever they lie."""
    return [[path.name, path.stat().st_size, head_hash(path)] for path in checkpoint.source.files]

"""Chunks: splits a plan's tensors into pieces of work, in file order."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.base import WholeTensorCodec
from bitsmith.recipe.plan import PlannedTensor

CHUNK_WEIGHTS = 1 << 19  # weights in one chunk; results do not depend on it, because error sums are added in order


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of one planned tensor. importance: importance of the columns, [cols] float32 or None"""

    planned: PlannedTensor
    start: int
    stop: int
    importance: np.ndarray | None = None


def chunks_of(
    tensors: Iterable[PlannedTensor], importance: Mapping[str, np.ndarray], *, without: Collection[str] = ()
) -> Iterator[Chunk]:
    """The chunks of all tensors, in file order.

    importance: by output name, float32 [matrices, cols]; no chunk crosses from one matrix to the next
    without: output names of tensors to leave out
    """
    for planned in tensors:
        if planned.info.name in without:
            continue
        columns = importance.get(planned.info.name)
        if columns is None or not planned.info.rows:
            yield from rows_of(planned, 0, planned.info.rows)
            continue
        each = planned.info.rows // len(columns)
        for matrix, weights in enumerate(columns):
            yield from rows_of(planned, matrix * each, (matrix + 1) * each, weights)


def rows_of(planned: PlannedTensor, start: int, stop: int, importance: np.ndarray | None = None) -> Iterator[Chunk]:
    """Rows start..stop of a tensor in chunks; a tensor without rows is one empty chunk."""
    step = chunk_rows(planned)
    for at in range(start, max(stop, start + 1), step):
        yield Chunk(planned, at, min(at + step, stop), importance)


def chunk_rows(planned: PlannedTensor) -> int:
    """Number of rows in a chunk. Each chunk holds whole groups of rows that belong together."""
    together = _rows_together(planned)
    return max(1, CHUNK_WEIGHTS // max(planned.info.cols, 1) // together) * together


def _rows_together(planned: PlannedTensor) -> int:
    """Number of rows that must stay in one chunk: a head with reordered rows, or outputs that share a 32-bit word."""
    reordered = planned.order is not None and len(planned.info.shape) > 1  # a bias is one row anyway
    head = planned.info.rows // planned.order.heads if reordered and planned.order is not None else 1
    return math.lcm(head, planned.codec.row_multiple if isinstance(planned.codec, WholeTensorCodec) else 1)

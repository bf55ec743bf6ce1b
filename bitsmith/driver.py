"""The driver: one loop over chunks of rows, bounded memory, from a Plan to a finished, verified output."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitsmith.arch.names import permute_rows, unpermute_rows
from bitsmith.containers.base import Source
from bitsmith.containers.gguf.blocks import decode_rows
from bitsmith.containers.gguf.blocks_float import encode_float
from bitsmith.containers.output import OutputFiles
from bitsmith.errors import TensorError
from bitsmith.formats.base import NeedsExtent
from bitsmith.manifest import Manifest, TensorRecord, joined_hash
from bitsmith.progress import Progress, Report, silent
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.rounders.nearest import nearest
from bitsmith.tensor import QuantTensor

CHUNK_WEIGHTS = 1 << 18  # weights in one piece of work; results do not depend on it, error sums are added in order


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of one planned tensor; importance: of their columns, [cols] float32 or None."""

    planned: PlannedTensor
    start: int
    stop: int
    importance: np.ndarray | None = None


@dataclass(frozen=True)
class Encoded:
    """What became of a chunk.

    parts: stored bytes by part
    source: the bytes it was made from
    squared_error, squared_weight: sums over the chunk, float64
    """

    parts: dict[str, np.ndarray]
    source: list[np.ndarray]
    squared_error: float
    squared_weight: float


def execute(
    plan: Plan,
    target: Path,
    *,
    threads: int,
    importance: Mapping[str, np.ndarray] | None = None,
    force: bool = False,
    report: Report = silent,
) -> Manifest:
    """Quantize as planned into `target`, verify, rename. Returns the manifest written.

    importance: by output name, float32 [matrices, cols]; tensors that are not in it are rounded without
    Peak memory is a few chunks a thread, whatever the model's size. The bytes written depend neither on the
    thread count nor on the time. Raises TensorError for weights that cannot be stored, FileError for the disk.
    """
    as_folder = plan.target.container == "native"
    layouts = plan.layouts(plan.manifest())
    total = sum(t.info.parameters for t in plan.tensors)
    with OutputFiles(target, layouts, extras=plan.extras, as_folder=as_folder, force=force) as output:
        records: list[TensorRecord] = []
        done = 0
        tally = _Tally()
        for chunk, encoded in _encode_all(plan, importance or {}, threads):
            for part, data in encoded.parts.items():
                output.write(chunk.planned.info.name, part, _bytes_of(data))
            tally.add(encoded)
            done += (chunk.stop - chunk.start) * chunk.planned.info.cols
            report(Progress("quantize", done, total, "weights", chunk.planned.info.name))
            if chunk.stop == chunk.planned.info.rows:
                records.append(tally.record(chunk.planned, output))
                tally = _Tally()
        manifest = plan.manifest(records)
        output.commit(plan.layouts(manifest), report)
    return manifest


class _Tally:
    """Hashes and sums of one tensor, fed chunk by chunk in order."""

    def __init__(self) -> None:
        self._source = hashlib.sha256()
        self._error = 0.0
        self._weight = 0.0

    def add(self, encoded: Encoded) -> None:
        for data in encoded.source:
            self._source.update(_bytes_of(data))
        self._error += encoded.squared_error
        self._weight += encoded.squared_weight

    def record(self, planned: PlannedTensor, output: OutputFiles) -> TensorRecord:
        hashes = [output.sha256(planned.info.name, part) for part in planned.parts]
        error = self._error / self._weight if self._weight else 0.0
        return TensorRecord(planned.info.name, joined_hash(hashes), self._source.hexdigest(), error)


def _encode_all(plan: Plan, importance: Mapping[str, np.ndarray], threads: int) -> Iterator[tuple[Chunk, Encoded]]:
    """Chunks in file order, encoded by a pool that runs at most two chunks a thread ahead."""
    waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in _chunks(plan, importance):
                waiting.append((chunk, pool.submit(encode_chunk, plan.checkpoint.source, chunk)))
                if len(waiting) > 2 * threads:
                    oldest, future = waiting.popleft()
                    yield oldest, future.result()
            while waiting:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _chunks(plan: Plan, importance: Mapping[str, np.ndarray]) -> Iterator[Chunk]:
    """Pieces of work in file order; where an importance covers several matrices, none crosses from one to the next."""
    for tensor in plan.tensors:
        planned = _with_extent(plan.checkpoint.source, tensor)
        rows, cols = planned.info.rows, planned.info.cols
        step = max(1, CHUNK_WEIGHTS // max(cols, 1))
        if planned.order is not None:  # whole heads
            head = rows // planned.order.heads
            step = max(1, step // head) * head
        known = importance.get(planned.info.name)
        if known is None:
            yield from (Chunk(planned, start, min(start + step, rows)) for start in range(0, rows, step))
            continue
        each = rows // len(known)
        for matrix, columns in enumerate(known):
            first, last = matrix * each, (matrix + 1) * each
            yield from (Chunk(planned, at, min(at + step, last), columns) for at in range(first, last, step))


def _with_extent(source: Source, planned: PlannedTensor) -> PlannedTensor:
    """The same, its format told the tensor's extent where it needs one: a first pass over the tensor's rows."""
    if planned.source is None or not isinstance(planned.format, NeedsExtent):
        return planned
    low, high = np.inf, -np.inf
    step = max(1, CHUNK_WEIGHTS // max(planned.info.cols, 1))
    for start in range(0, planned.info.rows, step):
        w = source.rows(planned.source, start, min(start + step, planned.info.rows))
        _check_finite(planned.source, w, start)
        low, high = min(low, float(w.min())), max(high, float(w.max()))
    return replace(planned, format=planned.format.with_extent(low, high))


def encode_chunk(source: Source, chunk: Chunk) -> Encoded:
    """Read, check, round and pack the rows of one chunk. Pure but for the reading."""
    planned = chunk.planned
    if planned.constant is not None:
        data = encode_float(planned.info.layout, planned.constant.reshape(1, -1))
        return Encoded({"data": data}, [], 0.0, 0.0)
    assert planned.source is not None
    packed = source.packed(planned.source, chunk.start, chunk.stop)
    w = source.decode(packed)
    _check_finite(planned.source, w, chunk.start)
    stored = list(packed.parts.values())
    if planned.verbatim:
        return Encoded(dict(packed.parts), stored, 0.0, _sum_of_squares(w))
    if planned.order is not None:
        reorder = permute_rows if planned.order.interleave else unpermute_rows
        w = reorder(w, planned.order.heads * (chunk.stop - chunk.start) // planned.info.rows)
    parts, values = encode_rows(planned, w, chunk.importance)
    if not np.isfinite(values).all():
        raise TensorError(
            f"{planned.source}: some weights overflow {planned.info.layout} (the largest is {np.abs(w).max():.6g}); "
            f"give it a wider type with --rule '^{planned.info.name}$=bf16', or f32."
        )
    return Encoded(parts, stored, _sum_of_squares(values - w), _sum_of_squares(w))


def encode_rows(
    planned: PlannedTensor, w: np.ndarray, importance: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored parts of whole rows `w`, float32 [rows, cols], and the float32 values that they decode to.

    importance: [cols] float32 or None, see `Format.fit`
    """
    if planned.format is None or planned.codec is None:
        data = encode_float(planned.info.layout, w)
        return {"data": data}, decode_rows(planned.info.layout, data, w.shape[1])
    codes, params = nearest(w, planned.format, importance)
    tensor = QuantTensor(planned.format, codes, params)
    return planned.codec.encode(tensor), tensor.values()


def _check_finite(name: str, w: np.ndarray, first_row: int) -> None:
    finite = np.isfinite(w)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    raise TensorError(
        f"{name}: {w[row, column]} at row {first_row + row}, column {column}; weights must be finite. "
        "The checkpoint is damaged: download it again or ask its author."
    )


def _sum_of_squares(x: np.ndarray) -> float:
    flat = x.reshape(-1).astype(np.float64)
    return float(flat @ flat)


def _bytes_of(data: np.ndarray) -> memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data

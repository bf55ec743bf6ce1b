"""The driver: one loop over chunks of rows, bounded memory, from a Plan to a finished, verified output."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from bitsmith.containers.base import Source, WholeTensorCodec
from bitsmith.containers.floats import WRITTEN_FLOATS, decode_numbers, encode_float
from bitsmith.containers.gguf.blocks_simple import BlockCodec
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.containers.manifest import Manifest, TensorRecord, joined_hash
from bitsmith.containers.output import OutputFiles
from bitsmith.errors import TensorError
from bitsmith.models.arch.names import permute_rows, unpermute_rows
from bitsmith.quant.formats.base import NeedsExtent
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.scale_search import tree_sum
from bitsmith.quant.tensor import PackedTensor, QuantTensor
from bitsmith.recipe.plan import Plan, PlannedTensor, RowOrder
from bitsmith.system.progress import Progress, Report, silent

CHUNK_WEIGHTS = 1 << 19  # weights in one piece of work; results do not depend on it, error sums are added in order
_LARGEST_F16 = 65504.0


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
    squared_error, squared_weight: sums over the chunk, float64
    """

    parts: dict[str, np.ndarray]
    squared_error: float
    squared_weight: float


@dataclass(frozen=True)
class RoundedRows:
    """Rows of a tensor whose stored values were chosen precomputed; rows in the source's order.

    name: of the output; start: of the rows, which no chunk of the tensor may straddle
    weight: float32 [rows, cols], what they stand for: the source's weights, or these rescaled
    tensor: their codes; None for a tensor that is stored as floats
    """

    name: str
    start: int
    weight: np.ndarray
    tensor: QuantTensor | None


@dataclass(frozen=True)
class Calibrated:
    """What a calibration decided.

    importance: by output name, float32 [matrices, cols]; tensors that are not in it are rounded without
    precomputed: output names of the tensors that `decided` gives; nothing else chooses theirs
    decided: tensors in any order, the pieces of one in the order of its rows
    """

    importance: Mapping[str, np.ndarray] = field(default_factory=dict)
    precomputed: frozenset[str] = frozenset()
    decided: Iterable[RoundedRows] = ()


def execute(
    plan: Plan,
    target: Path,
    *,
    threads: int,
    calibrated: Calibrated | None = None,
    force: bool = False,
    report: Report = silent,
) -> Manifest:
    """Quantize as planned into `target`, verify, rename. Returns the manifest written.

    Peak memory is a few chunks a thread, whatever the model's size, and the packed bytes of one tensor where its
    container does not keep the order of rows. The bytes written depend neither on the thread count nor on the time.
    Raises TensorError for weights that cannot be stored, FileError for the disk.
    """
    as_folder = plan.target.is_folder
    calibrated = calibrated or Calibrated()
    layouts = plan.layouts(plan.manifest())
    total = sum(t.info.parameters for t in plan.tensors)
    with OutputFiles(target, layouts, extras=plan.extras, as_folder=as_folder, force=force) as output:
        records: dict[str, TensorRecord] = {}
        done = 0
        tally = _Tally()
        reading = _Reading(plan.checkpoint.source)
        slabs: list[Mapping[str, np.ndarray]] = []
        encoding = chain(_encode_all(plan, calibrated, reading, threads), _encode_decided(plan, calibrated, reading))
        for chunk, encoded in encoding:
            name = chunk.planned.info.name
            for part, data in _in_file_order(chunk, encoded.parts, slabs).items():
                output.write(name, part, _bytes_of(data))
            tally.add(encoded)
            done += (chunk.stop - chunk.start) * chunk.planned.info.cols
            report(Progress("quantize", done, total, "weights", name))
            if chunk.stop == chunk.planned.info.rows:
                records[name] = tally.record(chunk.planned, output, reading.sha256(name))
                tally = _Tally()
        manifest = plan.manifest([records[t.info.name] for t in plan.tensors])
        output.commit(plan.layouts(manifest), report, threads=threads)
    return manifest


def _in_file_order(
    chunk: Chunk, parts: Mapping[str, np.ndarray], slabs: list[Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """What can be written now: nothing before the last chunk of a tensor whose codec must see it whole.

    slabs: its parts so far; emptied with the last
    """
    codec = chunk.planned.codec
    if not isinstance(codec, WholeTensorCodec):
        return parts
    slabs.append(parts)
    if chunk.stop < chunk.planned.info.rows:
        return {}
    joined = codec.join(slabs)
    slabs.clear()
    return joined


class _Reading:
    """Reads chunks, those of a tensor in order, and hashes what it read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hashes: dict[str, hashlib._Hash] = {}

    def read(self, chunk: Chunk) -> PackedTensor | None:
        """The stored rows of a chunk; None for a constant."""
        planned = chunk.planned
        digest = self._hashes.setdefault(planned.info.name, hashlib.sha256())
        if planned.source is None:
            return None
        packed = self._source.packed(planned.source, chunk.start, chunk.stop)
        for data in packed.parts.values():
            digest.update(_bytes_of(data))
        return packed

    def sha256(self, name: str) -> str:
        """Of the bytes that the output's tensor was made from, in hexadecimal; after its last chunk."""
        return self._hashes.pop(name).hexdigest()


class _Tally:
    """Sums of one tensor, fed chunk by chunk in order."""

    def __init__(self) -> None:
        self._error = 0.0
        self._weight = 0.0

    def add(self, encoded: Encoded) -> None:
        self._error += encoded.squared_error
        self._weight += encoded.squared_weight

    def record(self, planned: PlannedTensor, output: OutputFiles, source_sha256: str) -> TensorRecord:
        hashes = [output.sha256(planned.info.name, part) for part in planned.parts]
        error = self._error / self._weight if self._weight else 0.0
        return TensorRecord(planned.info.name, joined_hash(hashes), source_sha256, error)


def _encode_all(plan: Plan, calibrated: Calibrated, reading: _Reading, threads: int) -> Iterator[tuple[Chunk, Encoded]]:
    """Chunks in file order, read and hashed by one thread, encoded by a pool, at most two chunks a thread ahead."""
    source = plan.checkpoint.source
    waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()

    def encode(chunk: Chunk, packed: Future[PackedTensor | None]) -> Encoded:
        return encode_chunk(source, chunk, packed.result())

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in _chunks(plan, calibrated):
                waiting.append((chunk, pool.submit(encode, chunk, reader.submit(reading.read, chunk))))
                if len(waiting) > 2 * threads:
                    oldest, future = waiting.popleft()
                    yield oldest, future.result()
            while waiting:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _chunks(plan: Plan, calibrated: Calibrated) -> Iterator[Chunk]:
    """Pieces of work in file order; where an importance covers several matrices, none crosses from one to the next."""
    for tensor in plan.tensors:
        if tensor.info.name in calibrated.precomputed:
            continue
        planned = _with_extent(plan.checkpoint.source, tensor)
        known = calibrated.importance.get(planned.info.name)
        if known is None:
            yield from _rows_of(planned)
            continue
        step = _step(planned)
        each = planned.info.rows // len(known)
        for matrix, columns in enumerate(known):
            first, last = matrix * each, (matrix + 1) * each
            yield from (Chunk(planned, at, min(at + step, last), columns) for at in range(first, last, step))


def _rows_together(planned: PlannedTensor) -> int:
    """Rows that no chunk may part: a head whose rows are reordered, outputs that share a word of the file."""
    reordered = planned.order is not None and len(planned.info.shape) > 1  # a bias is one row anyway
    head = planned.info.rows // planned.order.heads if reordered and planned.order is not None else 1
    return math.lcm(head, planned.codec.row_multiple if isinstance(planned.codec, WholeTensorCodec) else 1)


def _encode_decided(plan: Plan, calibrated: Calibrated, reading: _Reading) -> Iterator[tuple[Chunk, Encoded]]:
    """Tensors that were decided precomputed, packed in the output's row order, chunk by chunk."""
    by_name = {tensor.info.name: tensor for tensor in plan.tensors}
    for decided in calibrated.decided:
        planned = by_name[decided.name]
        step, rows = _step(planned), len(decided.weight)
        for at in range(0, rows, step):
            chunk = Chunk(planned, decided.start + at, decided.start + min(at + step, rows))
            reading.read(chunk)
            try:
                yield chunk, _pack_decided(chunk, decided)
            except TensorError as error:
                raise TensorError(f"{planned.source}: {error}") from error


def _pack_decided(chunk: Chunk, decided: RoundedRows) -> Encoded:
    planned = chunk.planned
    rows = slice(chunk.start - decided.start, chunk.stop - decided.start)
    w = decided.weight[rows]
    if decided.tensor is None:
        ordered = w if planned.order is None else _reordered(planned.order, w, chunk)
        data = encode_float(planned.info.layout, ordered)
        parts, values, wanted = {"data": data}, decode_numbers(planned.info.layout, data), ordered
    else:
        parts, values, wanted = _pack_codes(chunk, decided.tensor, rows), decided.tensor.rows(rows).values(), w
    _check_decoded(planned, values, wanted)
    return Encoded(parts, _sum_of_squares(values - wanted), _sum_of_squares(wanted))


def _pack_codes(chunk: Chunk, tensor: QuantTensor, rows: slice) -> dict[str, np.ndarray]:
    """Stored parts of some rows of codes, in the output's row order."""
    planned, part = chunk.planned, tensor.rows(rows)
    assert planned.codec is not None
    if planned.order is not None:
        order = planned.order
        params = {name: _reordered(order, values, chunk) for name, values in part.params.items()}
        part = QuantTensor(part.format, _reordered(order, part.codes, chunk), params)
    return dict(planned.codec.encode(part))


def _rows_of(planned: PlannedTensor) -> Iterator[Chunk]:
    """A tensor in pieces of work."""
    rows, step = planned.info.rows, _step(planned)
    for start in range(0, max(rows, 1), step):  # a tensor without rows is one empty chunk
        yield Chunk(planned, start, min(start + step, rows))


def _step(planned: PlannedTensor) -> int:
    """Rows of a piece of work."""
    together = _rows_together(planned)
    return max(1, CHUNK_WEIGHTS // max(planned.info.cols, 1) // together) * together


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


def encode_chunk(source: Source, chunk: Chunk, packed: PackedTensor | None) -> Encoded:
    """Check, round and pack the rows of one chunk, `packed` as stored in the source; None for a constant."""
    planned = chunk.planned
    if planned.constant is not None:
        data = encode_float(planned.info.layout, planned.constant.reshape(1, -1))
        return Encoded({"data": data}, 0.0, 0.0)
    assert planned.source is not None
    assert packed is not None
    encoded = _encode_by_core(chunk, packed)
    if encoded is not None:
        return encoded
    try:
        w = source.decode(packed)
    except TensorError as error:
        raise TensorError(f"{source.path}: {planned.source}: {error}") from error
    _check_finite(planned.source, w, chunk.start)
    if planned.verbatim:
        return Encoded(dict(packed.parts), 0.0, _sum_of_squares(w))
    if planned.order is not None:
        w = _reordered(planned.order, w, chunk)
    try:
        parts, values = encode_rows(planned, w, chunk.importance)
    except TensorError as error:
        raise TensorError(f"{planned.source}: {error}") from error
    _check_decoded(planned, values, w)
    return Encoded(parts, _sum_of_squares(values - w), _sum_of_squares(w))


def _encode_by_core(chunk: Chunk, packed: PackedTensor) -> Encoded | None:
    """What `encode_chunk` gives, in one call of the C++ core; None where it cannot, or finds what must be looked at."""
    planned = chunk.planned
    if planned.verbatim or not isinstance(planned.codec, BlockCodec) or packed.layout not in WRITTEN_FLOATS:
        return None
    order = None
    if planned.order is not None:
        order = _reordered(planned.order, np.arange(chunk.stop - chunk.start).reshape(-1, 1), chunk)[:, 0]
    try:
        blocks = encode_stored(
            planned.codec, packed.layout, packed.parts["data"], importance=chunk.importance, order=order
        )
    except TensorError as error:
        raise TensorError(f"{planned.source}: {error}") from error
    if blocks is None:
        return None
    return Encoded({"data": blocks.data}, blocks.squared_error, blocks.squared_weight)


def _reordered(order: RowOrder, w: np.ndarray, chunk: Chunk) -> np.ndarray:
    """Whole heads of a q or k weight (or of its codes), or all of its bias: [1, rows of the weight]."""
    info = chunk.planned.info
    reorder = permute_rows if order.interleave else unpermute_rows
    if len(info.shape) == 1:
        return reorder(w.T, order.heads).T
    return reorder(w, order.heads * (chunk.stop - chunk.start) // info.rows)


def encode_rows(
    planned: PlannedTensor, w: np.ndarray, importance: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stored parts of whole rows `w`, float32 [rows, cols], and the float32 values that they decode to.

    importance: [cols] float32 or None, see `Format.fit`
    """
    if planned.format is None or planned.codec is None:
        data = encode_float(planned.info.layout, w)
        return {"data": data}, decode_numbers(planned.info.layout, data)
    codes, params = nearest(w, planned.format, importance)
    tensor = QuantTensor(planned.format, codes, params)
    return planned.codec.encode(tensor), tensor.values()


def _check_decoded(planned: PlannedTensor, values: np.ndarray, w: np.ndarray) -> None:
    if not np.isfinite(values).all() or _clipped(w, values):
        raise TensorError(
            f"{planned.source}: some weights overflow {planned.info.layout} (the largest is {np.abs(w).max():.6g}); "
            f"give it a wider type with --rule '^{planned.info.name}$=bf16', or f32."
        )


def _check_finite(name: str, w: np.ndarray, first_row: int) -> None:
    finite = np.isfinite(w)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    raise TensorError(
        f"{name}: {w[row, column]} at row {first_row + row}, column {column}; weights must be finite. "
        "The checkpoint is damaged: download it again or ask its author."
    )


def _clipped(w: np.ndarray, values: np.ndarray) -> bool:
    """Whether a row's largest weight, beyond float16, came back at less than half: its float16 scale ran out.

    w, values: float32 [rows, cols]
    """
    largest = np.maximum(w.max(axis=1, initial=0), -w.min(axis=1, initial=0))
    huge = largest > _LARGEST_F16
    return bool(huge.any()) and bool((np.abs(values[huge]).max(axis=1) < largest[huge] / 2).any())


def _sum_of_squares(x: np.ndarray) -> float:
    """In float64, as sixteen running sums that are then added by halves: the order of the C++ core."""
    flat = x.reshape(-1)
    whole = len(flat) // 16 * 16
    sums = np.square(flat[:whole].reshape(-1, 16), dtype=np.float64).sum(axis=0)
    sums[: len(flat) - whole] += np.square(flat[whole:], dtype=np.float64)
    return float(tree_sum(sums))


def _bytes_of(data: np.ndarray) -> memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data

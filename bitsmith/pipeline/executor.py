"""Executes a plan: writes its tensors chunk by chunk in bounded memory, then verifies them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from bitsmith.containers.base import WholeTensorCodec
from bitsmith.containers.manifest import Manifest, TensorRecord, joined_hash
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.pipeline.chunks import Chunk, chunks_of, rows_of
from bitsmith.pipeline.encode import Encoded, encode_chunk, encode_rounded, prepared
from bitsmith.quant.tensor import PackedTensor
from bitsmith.recipe.coverage import Coverage
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.system.progress import Progress, Report, silent


@dataclass(frozen=True)
class Written:
    """A finished output.

    recovered: names of the quantized tensors whose weights lay on their format's grid, and are kept exactly
    """

    manifest: Manifest
    recovered: tuple[str, ...] = ()


def execute(
    plan: Plan,
    target: Path,
    reservation: Reservation,
    *,
    threads: int,
    importance: Mapping[str, np.ndarray] | None = None,
    coverage: Coverage | None = None,
    report: Report = silent,
) -> Written:
    """Round all tensors of a plan to the nearest codes, write them to `target` and verify.

    reservation: of `plan.destination(target)`
    importance: by output name, float32 [matrices, cols], see `Format.fit`
    coverage: see `PlanWriter.finish`
    Raises TensorError for weights that cannot be stored, FileError for problems with the disk.
    """
    with PlanWriter(plan, target, reservation, report=report) as writer:
        writer.round_nearest(importance or {}, threads=threads)
        return writer.finish(threads=threads, coverage=coverage)


class PlanWriter:
    """Writes the output of one plan.

    Tensors may come in any order; the rows of each tensor must come in order. Peak memory is a few chunks per thread
    for any size of model, plus the packed bytes of one tensor if its container does not keep the order of rows. The
    bytes do not depend on the number of threads or on the time. No file gets its final name before `finish`.
    """

    def __init__(self, plan: Plan, target: Path, reservation: Reservation, *, report: Report = silent) -> None:
        """Take the census and open temporary files. Raises as `Assignment.census`; FileError if they cannot be written.

        reservation: of `plan.destination(target)`
        """
        plan.assignment.census  # noqa: B018 - raises where a weight would be lost
        self._plan, self._report = plan, report
        self._by_name = {tensor.info.name: tensor for tensor in plan.tensors}
        self._records: dict[str, TensorRecord] = {}
        self._begun: dict[str, _TensorSums] = {}
        self._total = sum(tensor.info.parameters for tensor in plan.tensors)
        self._done = 0
        self._recovered: list[str] = []
        self._output = OutputFiles(plan.destination(target), reservation)

    def __enter__(self) -> PlanWriter:
        """Return this writer."""
        self._output.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything that was not finished."""
        self._output.__exit__(kind, error, trace)

    def round_nearest(
        self, importance: Mapping[str, np.ndarray], *, threads: int, without: Collection[str] = ()
    ) -> None:
        """Write all tensors with the nearest codes, except those in `without` (output names).

        importance: see `execute`
        One thread reads and hashes; a pool rounds and packs.
        """
        source = self._plan.checkpoint.reader
        tensors = (
            prepared(source, tensor, importance.get(tensor.info.name))
            for tensor in self._plan.tensors
            if tensor.info.name not in without
        )
        chunks = chunks_of(tensors, importance)

        def encode(chunk: Chunk, packed: Future[PackedTensor | None]) -> Encoded:
            return encode_chunk(source, chunk, packed.result())

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as pool:
            for chunk, encoded in _in_order(
                chunks, lambda chunk: pool.submit(encode, chunk, reader.submit(self._read, chunk)), ahead=2 * threads
            ):
                self._write(chunk, encoded)

    def write_rounded(self, rounded: RoundedRows) -> None:
        """Write rows whose values a calibrated method chose, under the output's name."""
        planned = self._by_name[rounded.name]
        for chunk in rows_of(planned, rounded.start, rounded.start + len(rounded.weight)):
            self._read(chunk)
            self._write(chunk, encode_rounded(chunk, rounded))

    def finish(self, *, threads: int, coverage: Coverage | None = None) -> Written:
        """Flush, read back, compare and rename.

        coverage: tokens that each expert saw, for the manifest
        """
        plan = self._plan.with_coverage(coverage).with_recovered(len(self._recovered))
        records = [self._records[tensor.info.name] for tensor in plan.tensors]
        self._output.commit(plan.layouts(records), self._report, threads=threads)
        recovered = set(self._recovered)
        names = tuple(tensor.info.name for tensor in plan.tensors if tensor.info.name in recovered)
        return Written(plan.manifest(records), names)

    def _read(self, chunk: Chunk) -> PackedTensor | None:
        """Read the stored rows of a chunk and add them to their tensor's hash. Returns None for a constant."""
        sums = self._begun.setdefault(chunk.planned.info.name, _TensorSums())
        if chunk.planned.source is None:
            return None
        packed = self._plan.checkpoint.reader.packed(chunk.planned.source, chunk.start, chunk.stop)
        for data in packed.parts.values():
            sums.source.update(_bytes_of(data))
        return packed

    def _write(self, chunk: Chunk, encoded: Encoded) -> None:
        planned, name = chunk.planned, chunk.planned.info.name
        sums = self._begun[name]
        for part, data in sums.in_file_order(chunk, encoded.parts).items():
            self._output.write(name, part, _bytes_of(data))
        sums.error += encoded.squared_error
        sums.weight += encoded.squared_weight
        sums.kept = sums.kept and encoded.kept
        self._done += (chunk.stop - chunk.start) * planned.info.cols
        self._report(Progress(self._plan.recipe.command, self._done, self._total, "weights", name))
        if chunk.stop == planned.info.rows:
            self._records[name] = self._begun.pop(name).record(planned, self._output)
            if sums.kept and sums.weight and planned.format is not None and not planned.verbatim:
                self._recovered.append(name)


class _TensorSums:
    """Running sums of one tensor, whose chunks come in order.

    source: hash of the stored bytes of its source
    error, weight: sums of squares, float64
    kept: whether all chunks so far kept their weights exactly
    """

    def __init__(self) -> None:
        self.source = hashlib.sha256()
        self.error = self.weight = 0.0
        self.kept = True
        self._slabs: list[Mapping[str, np.ndarray]] = []

    def in_file_order(self, chunk: Chunk, parts: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The parts that can be written now. A `WholeTensorCodec` gives nothing before the tensor's last chunk."""
        codec = chunk.planned.codec
        if not isinstance(codec, WholeTensorCodec):
            return parts
        self._slabs.append(parts)
        return codec.join(self._slabs) if chunk.stop == chunk.planned.info.rows else {}

    def record(self, planned: PlannedTensor, output: OutputFiles) -> TensorRecord:
        """The manifest's entry."""
        hashes = [output.sha256(planned.info.name, part) for part in planned.parts]
        error = self.error / self.weight if self.weight else 0.0
        return TensorRecord(planned.info.name, joined_hash(hashes), self.source.hexdigest(), error)


def _in_order(
    chunks: Iterable[Chunk], submit: Callable[[Chunk], Future[Encoded]], *, ahead: int
) -> Iterator[tuple[Chunk, Encoded]]:
    """Results in the order of the chunks, with at most `ahead` chunks waiting."""
    waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, submit(chunk)))
            if len(waiting) > ahead:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        while waiting:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _bytes_of(data: np.ndarray) -> memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data

"""Executes a plan: writes its tensors chunk by chunk in bounded memory, then verifies them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from bitsmith.containers.base import WholeTensorCodec
from bitsmith.containers.manifest import Manifest, TensorRecord, joined_hash
from bitsmith.containers.output import HashedBytes, Marks, OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.pipeline.chunks import Chunk, chunks_of, rows_of
from bitsmith.pipeline.encode import Encoded, encode_chunk, encode_rounded, prepared
from bitsmith.pipeline.written import WrittenLedger, WrittenRows
from bitsmith.quant.tensor import PackedTensor
from bitsmith.recipe.coverage import Coverage
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.folder import WorkFolder


@dataclass(frozen=True)
class Written:
    """A finished output.

    recovered: names of the quantized tensors whose weights lay on their format's grid, and are kept exactly
    """

    manifest: Manifest
    recovered: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeRows:
    """The next rows of a tensor as they were made elsewhere.

    name: output name; stop: the row behind the last
    parts: bytes in file order
    chunks: sums of squares of error and weight, and whether all weights were kept, of each chunk in order
    """

    name: str
    stop: int
    parts: Mapping[str, HashedBytes]
    chunks: Sequence[tuple[float, float, bool]]


def execute(
    plan: Plan,
    target: Path,
    reservation: Reservation,
    *,
    threads: int,
    importance: Mapping[str, np.ndarray] | None = None,
    coverage: Coverage | None = None,
    work: WorkFolder | None = None,
    verified: Callable[[Written, Marks], None] = lambda written, marks: None,
    report: Report = silent,
) -> Written:
    """Round all tensors of a plan to the nearest codes, write them to `target` and verify.

    reservation: of `plan.destination(target)`
    importance: by output name, float32 [matrices, cols], see `Format.fit`
    coverage, verified: see `PlanWriter.finish`
    work: see `PlanWriter`
    Raises TensorError for weights that cannot be stored, FileError for problems with the disk.
    """
    with PlanWriter(plan, target, reservation, work=work, report=report) as writer:
        writer.round_nearest(importance or {}, threads=threads)
        return writer.finish(threads=threads, coverage=coverage, verified=verified)


class PlanWriter:
    """Writes the output of one plan.

    Tensors may come in any order; the rows of each tensor must come in order. Peak memory is a few chunks per thread
    for any size of model, plus the packed bytes of one tensor if its container does not keep the order of rows. The
    bytes do not depend on the number of threads or on the time. No file gets its final name before `finish`.
    """

    def __init__(
        self,
        plan: Plan,
        target: Path,
        reservation: Reservation,
        *,
        work: WorkFolder | None = None,
        report: Report = silent,
    ) -> None:
        """Take the census and open temporary files. Raises as `Assignment.census`; FileError if they cannot be written.

        reservation: of `plan.destination(target)`
        work: the folder where the run keeps what it has done; None: nothing is kept
        """
        plan.assignment.census  # noqa: B018 - raises where a weight would be lost
        self._plan, self._report = plan, report
        self._by_name = {tensor.info.name: tensor for tensor in plan.tensors}
        self._records: dict[str, TensorRecord] = {}
        self._begun: dict[str, _TensorSums] = {}
        self._total = sum(tensor.info.parameters for tensor in plan.tensors)
        self._done = 0
        self._recovered: list[str] = []
        folder = None if work is None else work.files
        self._output = OutputFiles(replace(plan.destination(target), folder=folder), reservation)
        self._ledger = None if work is None else WrittenLedger(work)

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
        wanted = [tensor for tensor in self._plan.tensors if tensor.info.name not in without]
        wanted = [tensor for tensor in wanted if not self._take_over(tensor)]
        tensors = (prepared(source, tensor, importance.get(tensor.info.name)) for tensor in wanted)
        chunks = (each for each in chunks_of(tensors, importance) if not self._is_written(each))

        def encode(chunk: Chunk, packed: Future[PackedTensor | None]) -> Encoded:
            return encode_chunk(source, chunk, packed.result())

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as pool:
            for chunk, encoded in _in_order(
                chunks, lambda chunk: pool.submit(encode, chunk, reader.submit(self._read, chunk)), ahead=2 * threads
            ):
                self._write(chunk, encoded)
                self.keep_if_due()

    def take_over_begun(self, tensors: Iterable[PlannedTensor]) -> None:
        """Take over what an earlier start has written of some tensors, whole or not."""
        for planned in tensors:
            self._take_over(planned)

    def wants(self, planned: PlannedTensor, stop: int) -> bool:
        """Whether the rows of a tensor before row `stop` are still to be written, or the tensor to be ended."""
        name = planned.info.name
        return name not in self._records and (stop == planned.info.rows or self.rows_of(name) < stop)

    def rows_of(self, name: str) -> int:
        """Number of rows of a tensor that are written."""
        begun = self._begun.get(name)
        return self._by_name[name].info.rows if name in self._records else 0 if begun is None else begun.rows

    def append(self, rows: MadeRows) -> bool:
        """Write the next rows of a tensor, which were rounded elsewhere. False if the bytes are not what was made."""
        planned, sums = self._by_name[rows.name], self._sums(rows.name)
        if not self._output.append(rows.name, rows.parts):
            return False
        for error, weight, kept in rows.chunks:
            sums.add(error, weight, kept=kept)
        self._count(planned, rows.stop)
        return True

    def end_encoded(self, name: str, source: str) -> None:
        """End a tensor whose rows were rounded elsewhere. source: hash of the stored bytes of its source"""
        planned = self._by_name[name]
        if name not in self._records and self._sums(name).rows == planned.info.rows:
            self._finished(planned, source)

    def keep_if_due(self) -> bool:
        """Add what was written to the ledger, if it is time for it. Returns whether it was added."""
        if self._ledger is None or not self._ledger.due:
            return False
        self.keep()
        return True

    def write_rounded(self, rounded: RoundedRows) -> None:
        """Write rows whose values a calibrated method chose, under the output's name."""
        planned = self._by_name[rounded.name]
        for chunk in rows_of(planned, rounded.start, rounded.start + len(rounded.weight)):
            self._read(chunk)
            self._write(chunk, encode_rounded(chunk, rounded))

    def has(self, name: str) -> bool:
        """Whether a tensor is whole."""
        return name in self._records

    def take_over(self, names: Iterable[str]) -> bool:
        """Take over whole tensors that an earlier start has written. False if any is not there as it was written."""
        return all(self._take_over(self._by_name[name]) and name in self._records for name in names)

    def take_over_rows(self, name: str, slabs: Sequence[tuple[int, int]]) -> bool:
        """Take over the first rows of a tensor, which came in these slabs (first row and the one behind the last).

        False if they are not there as they were written.
        """
        planned = self._by_name[name]
        if not slabs or not self._take_over(planned, slabs[-1][1]):
            return False
        for start, stop in slabs:
            for chunk in rows_of(planned, start, stop):
                self._read(chunk)
        if slabs[-1][1] == planned.info.rows:
            self._end(planned, self._begun[name].source.hexdigest())
        return True

    def restart(self, names: Iterable[str]) -> None:
        """Forget what was written of some tensors; they are written again from their first rows."""
        for name in names:
            planned, begun = self._by_name[name], self._begun.pop(name, None)
            if self._records.pop(name, None) is not None:
                self._done -= planned.info.parameters
            elif begun is not None:
                self._done -= begun.rows * planned.info.cols
            for part in planned.parts:
                self._output.restart(name, part)
        self._recovered = [name for name in self._recovered if name in self._records]

    def keep(self, said: str = "") -> None:
        """Add what was written so far to the work folder's ledger. said: how far that is, for the user"""
        if self._ledger is not None:
            begun = [self._snapshot(self._by_name[name]) for name in list(self._begun)]
            self._ledger.keep([each for each in begun if each is not None], said or self._said())

    def finish(
        self,
        *,
        threads: int,
        coverage: Coverage | None = None,
        verified: Callable[[Written, Marks], None] = lambda written, marks: None,
    ) -> Written:
        """Flush, read back, compare and rename.

        coverage: tokens that each expert saw, for the manifest
        verified: called before the files get their names, with the mark of each, see `OutputFiles.commit`
        """
        self.keep_if_due()
        plan = self._plan.with_coverage(coverage).with_recovered(len(self._recovered))
        records = [self._records[tensor.info.name] for tensor in plan.tensors]
        recovered = set(self._recovered)
        names = tuple(tensor.info.name for tensor in plan.tensors if tensor.info.name in recovered)
        written = Written(plan.manifest(records), names)
        self._output.commit(
            plan.layouts(records), self._report, threads=threads, verified=lambda marks: verified(written, marks)
        )
        return written

    # -- what an earlier start has written

    def _take_over(self, planned: PlannedTensor, rows: int | None = None) -> bool:
        """Go on behind the rows of a tensor that an earlier start has written. True if it is whole, or has just `rows`.

        rows: how many rows count; None: as many as there are
        """
        name = planned.info.name
        if self._ledger is None or name in self._records:
            return name in self._records
        found = None if rows is not None else self._ledger.whole(name)
        found = found or self._ledger.begun(name, rows)
        if found is None or found.parts.keys() != set(planned.parts) or found.rows > planned.info.rows:
            return False
        if not all(self._output.take_over(name, part, *each) for part, each in found.parts.items()):
            self.restart([name])
            return False
        whole = bool(found.source) and rows is None
        sums = self._begun[name] = _TensorSums()
        sums.rows, sums.error, sums.weight, sums.kept = found.rows, found.error, found.weight, found.kept
        self._done += found.rows * planned.info.cols
        if whole:
            self._end(planned, found.source)
        self._report(Progress(self._plan.recipe.command, self._done, self._total, "weights", name))
        return whole or rows is not None

    def _is_written(self, chunk: Chunk) -> bool:
        """Whether an earlier start has written a chunk. Its source is hashed again, to go on behind it."""
        sums = self._begun.get(chunk.planned.info.name)
        if sums is None or not 0 < chunk.stop <= sums.rows:
            return False
        self._read(chunk)
        return True

    def _snapshot(self, planned: PlannedTensor) -> WrittenRows | None:
        """The rows of a tensor so far; None if a part of them is not written yet."""
        sums = self._begun[planned.info.name]
        if isinstance(planned.codec, WholeTensorCodec) or not sums.rows:
            return None
        return sums.written(planned, self._output)

    def _said(self) -> str:
        return f"{100 * self._done // max(self._total, 1)} % of the weights"

    def _read(self, chunk: Chunk) -> PackedTensor | None:
        """Read the stored rows of a chunk and add them to their tensor's hash. Returns None for a constant."""
        sums = self._sums(chunk.planned.info.name)
        if chunk.planned.source is None:
            return None
        packed = self._plan.checkpoint.reader.packed(chunk.planned.source, chunk.start, chunk.stop)
        for data in packed.parts.values():
            sums.source.update(_bytes_of(data))
        return packed

    def _sums(self, name: str) -> _TensorSums:
        return self._begun.setdefault(name, _TensorSums())

    def _write(self, chunk: Chunk, encoded: Encoded) -> None:
        planned, name = chunk.planned, chunk.planned.info.name
        sums = self._begun[name]
        for part, data in sums.in_file_order(chunk, encoded.parts).items():
            self._output.write(name, part, _bytes_of(data))
        sums.add(encoded.squared_error, encoded.squared_weight, kept=encoded.kept)
        self._count(planned, chunk.stop)
        if chunk.stop == planned.info.rows:
            self._finished(planned, sums.source.hexdigest())

    def _count(self, planned: PlannedTensor, stop: int) -> None:
        """Count the rows of a tensor before `stop` as written."""
        sums = self._begun[planned.info.name]
        self._done += (stop - sums.rows) * planned.info.cols
        sums.rows = stop
        self._report(Progress(self._plan.recipe.command, self._done, self._total, "weights", planned.info.name))

    def _finished(self, planned: PlannedTensor, source: str) -> None:
        """Record a tensor that this start has written to its end, for the ledger too."""
        if self._ledger is not None:
            self._ledger.note(self._begun[planned.info.name].written(planned, self._output, source))
        self._end(planned, source)

    def _end(self, planned: PlannedTensor, source: str) -> None:
        """Record a tensor that is whole. source: hash of the bytes of its source"""
        name = planned.info.name
        sums = self._begun.pop(name)
        self._records[name] = sums.record(planned, self._output, source)
        if sums.kept and sums.weight and planned.format is not None and not planned.verbatim:
            self._recovered.append(name)


class _TensorSums:
    """Running sums of one tensor, whose chunks come in order.

    source: hash of the stored bytes of its source
    error, weight: sums of squares, float64
    kept: whether all chunks so far kept their weights exactly
    rows: number of rows that are written
    """

    def __init__(self) -> None:
        self.rows = 0
        self.source = hashlib.sha256()
        self.error = self.weight = 0.0
        self.kept = True
        self._slabs: list[Mapping[str, np.ndarray]] = []

    def add(self, error: float, weight: float, *, kept: bool) -> None:
        """Count a chunk in."""
        self.error += error
        self.weight += weight
        self.kept = self.kept and kept

    def in_file_order(self, chunk: Chunk, parts: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The parts that can be written now. A `WholeTensorCodec` gives nothing before the tensor's last chunk."""
        codec = chunk.planned.codec
        if not isinstance(codec, WholeTensorCodec):
            return parts
        self._slabs.append(parts)
        return codec.join(self._slabs) if chunk.stop == chunk.planned.info.rows else {}

    def record(self, planned: PlannedTensor, output: OutputFiles, source: str) -> TensorRecord:
        """The manifest's entry. source: hash of the source's bytes"""
        hashes = [output.sha256(planned.info.name, part) for part in planned.parts]
        error = self.error / self.weight if self.weight else 0.0
        return TensorRecord(planned.info.name, joined_hash(hashes), source, error)

    def written(self, planned: PlannedTensor, output: OutputFiles, source: str = "") -> WrittenRows:
        """The rows so far, for the ledger. source: hash of the source's bytes, if the tensor is whole"""
        name = planned.info.name
        parts = {part: (output.written(name, part), output.sha256(name, part)) for part in planned.parts}
        return WrittenRows(name, self.rows, parts, source, self.error, self.weight, self.kept)


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

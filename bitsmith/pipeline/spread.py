"""Rounds the tensors of an output on several workers: makes the graph, and writes the results in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitsmith.containers.base import WholeTensorCodec
from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.for_workers import name_for_workers
from bitsmith.pipeline.chunks import chunks_of
from bitsmith.pipeline.executor import PlanWriter
from bitsmith.pipeline.planned import Description
from bitsmith.pipeline.task_functions import made_rows
from bitsmith.quant.formats.base import NeedsExtent, Settled
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.recipe.target import Target
from bitsmith.scale.config import ScaleConfig
from bitsmith.scale.executors import Site, executor_of
from bitsmith.scale.results import deliver
from bitsmith.scale.store import Store, open_store
from bitsmith.scale.task import Given, Graph, Task
from bitsmith.system.options import words_of
from bitsmith.work.folder import WorkFolder
from bitsmith.work.key import program
from bitsmith.work.state import DamagedError, State

PIECE_WEIGHTS = 1 << 25  # of one task; its result is at most four times as many bytes


@dataclass(frozen=True)
class Spread:
    """Where the tasks of a run are done.

    model, revision: for workers, as `open_checkpoint` takes them
    where: of the results; None: in the work folder
    """

    site: Site
    model: str
    revision: str | None
    where: str | None = None
    notes: list[str] = field(default_factory=list)

    def store(self, work: WorkFolder) -> Store:
        """The store of one output's results."""
        return open_store(work.tasks if self.where is None else f"{self.where.rstrip('/')}/{work.path.name}")

    def begin(self, folders: Iterable[WorkFolder]) -> None:
        """Remove results of earlier starts of the outputs that are to be made afresh."""
        self.remove(work for work in folders if work.fresh)

    def remove(self, folders: Iterable[WorkFolder]) -> None:
        """Remove all results of outputs that are done."""
        for work in folders:
            self.store(work).remove()


def spread_of(
    config: ScaleConfig, checkpoint: Checkpoint, targets: Sequence[Target], command: Sequence[str]
) -> Spread | None:
    """Where the tasks of a run are done; None: in this process. command: of the run, "quantize" for instance

    Raises UsageError if that is impossible: Ray is not installed, the source has no name of its own.
    """
    if config.executor is None:
        return None
    if checkpoint.merged:
        raise UsageError(
            f"--executor={config.executor}: workers open a model by its name, but this is a model with an adapter; "
            "write the merged model first, with `bitsmith merge`."
        )
    if config.executor == "slurm" and len(targets) > 1:
        raise UsageError("--executor=slurm: a job makes one output; give one --to.")
    model = name_for_workers(checkpoint)
    out = Path(str(vars(config).get("out") or f"{checkpoint.name}-{targets[0].name if targets else 'converted'}"))
    words = words_of(config, without=("executor", "workers", "fresh"))
    said = [*command, model, *(f"--to={target}" for target in targets), *words]
    site = Site(config.executor, config.workers, vars(config).get("threads"), out, said)
    executor_of(site)
    return Spread(site, model, None, config.work)


def round_spread(
    writer: PlanWriter,
    plan: Plan,
    importance: Mapping[str, np.ndarray],
    spread: Spread,
    work: WorkFolder,
    *,
    without: Iterable[str] = (),
    input_absmax: Mapping[str, float] | None = None,
) -> None:
    """The same as `PlanWriter.round_nearest`, by the tasks of a graph. Raises as `results`."""
    left_out = set(without)
    tensors = [each for each in plan.tensors if each.info.name not in left_out]
    run = Given(Description.of(plan, spread.model, spread.revision, input_absmax).to_dict(plan))
    writer.take_over_begun(tensors)
    _begin_at_pieces(writer, tensors, importance)
    graph = round_graph(tensors, importance, run, wanted=writer.wants)
    if not graph.tasks:
        return
    store = spread.store(work)
    written = _Writing(writer, store)
    for task in deliver(graph, store, executor_of(spread.site), written.take, told=spread.notes.append):
        written.done(task.key)


def _begin_at_pieces(
    writer: PlanWriter, tensors: Sequence[PlannedTensor], importance: Mapping[str, np.ndarray]
) -> None:
    """Begin tensors again that an earlier start, in one process, has left within a piece."""
    begun = [each for each in tensors if 0 < writer.rows_of(each.info.name) < each.info.rows]
    if begun:
        stops = {(each.tensor.info.name, each.stop) for pieces, _ in _pieces(tensors, importance) for each in pieces}
        names = (each.info.name for each in begun)
        writer.restart(name for name in names if (name, writer.rows_of(name)) not in stops)


class _Writing:
    """Writes results; those whose rows the ledger knows are not needed any more, and dropped."""

    def __init__(self, writer: PlanWriter, store: Store) -> None:
        self._writer, self._store = writer, store
        self._written: list[str] = []

    def take(self, state: State) -> None:
        """Write what a result holds. Raises DamagedError if its bytes do not have their hashes."""
        for rows in made_rows(state):
            there = self._writer.rows_of(rows.name)
            if (rows.stop > there or not rows.stop) and not self._writer.append(rows):
                raise DamagedError("its content does not have its hash")
        for name, sha256 in state.values["sources"].items():
            self._writer.end_encoded(str(name), str(sha256))

    def done(self, key: str) -> None:
        """All of a result is written."""
        self._written.append(key)
        if self._writer.keep_if_due():
            for each in self._written:
                self._store.drop(each)
            self._written = []


def round_graph(
    tensors: Sequence[PlannedTensor],
    importance: Mapping[str, np.ndarray],
    run: Given,
    *,
    wanted: Callable[[PlannedTensor, int], bool] = lambda tensor, stop: True,
) -> Graph:
    """The tasks that round some tensors to the nearest codes.

    wanted: whether the rows of a tensor before a row are still to be done; tasks are cut in the same way in any case
    """
    given = [run]
    used = {each.info.name: importance[each.info.name] for each in tensors if each.info.name in importance}
    if used:
        given.append(Given({}, used))
    inputs = tuple(each.key for each in given)
    tasks = []
    for pieces, cost in _pieces(tensors, importance):
        kept = [each for each in pieces if wanted(each.tensor, each.stop)]
        if kept:
            names = dict.fromkeys((kept[0].tensor.info.name, kept[-1].tensor.info.name))
            plain = [[each.tensor.info.name, each.start, each.stop] for each in pieces]
            tasks.append(Task("pipeline.round", " to ".join(names), {"pieces": plain}, inputs, cost))
        for name in (each.tensor.info.name for each in kept if each.start and each.stop == each.tensor.info.rows):
            tasks.append(Task("pipeline.hash", f"hash of {name}", {"tensor": name}, (run.key,), cost / 20))
    return Graph(tasks, given, program=program())


@dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor: those of whole chunks. stop: the row behind the last"""

    tensor: PlannedTensor
    start: int
    stop: int


def _pieces(
    tensors: Sequence[PlannedTensor], importance: Mapping[str, np.ndarray]
) -> Iterable[tuple[list[_Piece], float]]:
    """The chunks of all tensors in groups of about PIECE_WEIGHTS weights, and their weights."""
    group: list[_Piece] = []
    size = 0
    for tensor in tensors:
        start, chunks = 0, list(chunks_of([tensor], importance))
        whole = isinstance(tensor.format, NeedsExtent | Settled) or isinstance(tensor.codec, WholeTensorCodec)
        for at, chunk in enumerate(chunks, 1):
            size += (chunk.stop - chunk.start) * tensor.info.cols
            ends = at == len(chunks)
            if ends or (size >= PIECE_WEIGHTS and not whole):
                group.append(_Piece(tensor, start, chunk.stop))
                start = chunk.stop
            if size >= PIECE_WEIGHTS and start == chunk.stop:
                yield group, size
                group, size = [], 0
    if group:
        yield group, size

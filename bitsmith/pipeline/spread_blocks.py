"""Rounds a model block by block on several workers: makes the graph, and writes the rows of its linears in order.

The windows of the text are cut into parts of PART_TOKENS, whatever the number of workers. Sums over all windows are
sums of the parts' sums, in their order, so that the bytes do not depend on who did what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.calibration.parts import parts_of_windows
from bitsmith.calibration.resources import Resources
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.work import BlockwiseWork, Reports
from bitsmith.models.arch.block import parts_of
from bitsmith.models.arch.config import ModelConfig
from bitsmith.pipeline.executor import PlanWriter
from bitsmith.pipeline.planned import Description
from bitsmith.pipeline.spread import Spread
from bitsmith.recipe.plan import Plan
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.scale.executors import executor_of
from bitsmith.scale.results import results
from bitsmith.scale.task import Given, Graph, Task
from bitsmith.system.progress import Progress, Report
from bitsmith.work.folder import WorkFolder
from bitsmith.work.key import program
from bitsmith.work.state import State

if TYPE_CHECKING:
    from bitsmith.pipeline.block_tasks import BlockWork


def kept_on_the_head(work: BlockwiseWork, tokens: CalibrationTokens, device: str, *, trained: bool) -> str:
    """Why the blocks of a run are rounded in one process; "" if several workers can share them."""
    if trained or work.task.method.row.tuner is not None:
        return "blocks are trained as a whole"
    if any(each.changes for found in work.task.rescalings.values() for each in found):
        return "columns are rescaled first"
    if work.config.decoder.experts is not None or tokens.all_experts:
        return "the model has experts"
    if work.config.kept_layers:
        return "layers use keys and values of others"
    return "" if device == "cpu" else f"it runs on {device}"


def round_blocks(
    writer: PlanWriter,
    plan: Plan,
    work: BlockwiseWork,
    tokens: CalibrationTokens,
    spread: Spread,
    folder: WorkFolder,
    *,
    reports: Reports,
    input_absmax: Mapping[str, float] | None,
    resources: Resources,
    report: Report,
) -> None:
    """Round all blocks and the head, and write their rows. Raises as `results`."""
    from bitsmith.calibration.tied_head import head_of, to_arrays
    from bitsmith.pipeline.block_tasks import BlockWork

    description = Description.of(plan, spread.model, spread.revision, input_absmax).to_dict(plan)
    told = {
        "plan": description,
        "method": str(work.task.method),
        "effort": work.task.effort,
        "seed": work.task.seed,
    }
    head = head_of(work, plan.checkpoint, tokens.tokens, resources, report, folder=folder)
    arrays = {} if head is None else to_arrays(head)
    run, text = Given({**told, "head": Given({}, arrays).key}, arrays), Given({}, {"tokens": tokens.tokens})
    own = BlockWork(told, head)
    graph = _Blocks(own, (run.key, text.key), parts_of_windows(tokens.tokens)).graph([run, text])
    _write_embedding(writer, own, work)
    name, layers = work.task.method.rounder, work.config.layers
    for task, state in results(graph, spread.store(folder), executor_of(spread.site), told=spread.notes.append):
        layer = int(task.arguments["layer"])
        report(Progress(name, layer, layers, "blocks", task.name))
        _write(writer, own, work, state, layer)
        for each in state.values["reports"]:
            reports.add_values(each)
        writer.keep_if_due()
    report(Progress(name, layers, layers, "blocks"))


def _write_embedding(writer: PlanWriter, own: BlockWork, work: BlockwiseWork) -> None:
    """Round and write the embedding, if its rows are calibrated: rows are read and written here in any case."""
    from bitsmith.calibration.blockwise import Rounded
    from bitsmith.calibration.work import EMBEDDING

    if own.embedding is None or not work.task.calibrates_embedding:
        return
    name = work.outputs[EMBEDDING].name
    if writer.take_over([name]):
        return
    writer.restart([name])
    for rows in own.embedding.slabs():
        for each in work.rows(Rounded((rows,), {})):
            writer.write_rounded(each)


def _write(writer: PlanWriter, own: BlockWork, work: BlockwiseWork, state: State, layer: int) -> None:
    """Write the rows of a task, unless an earlier start has written them."""
    from bitsmith.calibration.blockwise import Rounded

    rows = [replace(each, weight=_weight(own, each, layer)) for each in own.rows(state)]
    for each in work.rows(Rounded(tuple(rows), {})):
        if each.start == 0:
            if writer.take_over([each.name]):
                continue
            writer.restart([each.name])
        if not writer.has(each.name):
            writer.write_rounded(each)


def _weight(own: BlockWork, rows: RoundedRows, layer: int) -> np.ndarray:
    """The weights that rows stand for, float32 [rows, cols]."""
    assert rows.tensor is not None
    if layer == own.config.layers:
        found: np.ndarray = own.loader.read(rows.name).rows(rows.start, rows.start + len(rows.tensor.codes))
        return found
    linear = own.start(layer).linears[rows.name.removeprefix(f"blk.{layer}.").removesuffix(".weight")]
    values: np.ndarray = linear.prepared.numpy()
    return values


@dataclass(frozen=True)
class _Blocks:
    """Makes the tasks of all blocks and of the head.

    given: keys of the run and of its tokens
    """

    work: BlockWork
    given: tuple[str, str]
    parts: Sequence[tuple[int, int]]

    def graph(self, given: Sequence[Given]) -> Graph:
        """All tasks. What is wanted are the codes."""
        tasks = list(self._tasks())
        ends = [task.key for task in tasks if task.kind == "pipeline.linears"]
        return Graph(tasks, given, program=program(), ends=ends)

    def _tasks(self) -> Iterator[Task]:
        hidden = [self._over("embed", "embedding of", {}, part, ()) for part in self.parts]
        yield from hidden
        config = self.work.config
        for layer in range(config.layers):
            made: list[Task] = []
            for part in range(len(parts_of(config, layer))):
                for tasks in self._part(layer, part, hidden, made):
                    yield from tasks
                place = {"layer": layer, "part": part, "stage": 0, "portion": 0}
                hidden = [
                    self._over("advance", f"block {layer} for", place, at, (before.key, *(each.key for each in made)))
                    for at, before in zip(self.parts, hidden, strict=True)
                ]
                yield from hidden
        yield from self._head(config, hidden)

    def _part(self, layer: int, part: int, hidden: Sequence[Task], made: list[Task]) -> Iterator[list[Task]]:
        """The sums and the roundings of a part of a block; the latter are added to `made`."""
        for place, groups in self._portions(layer, part):
            before = [each.key for each in made]
            sums = [
                self._over("sums", f"inputs of block {layer} for", place, at, (states.key, *before))
                for at, states in zip(self.parts, hidden, strict=True)
            ]
            yield sums
            rounded = [
                Task(
                    "pipeline.linears",
                    f"block {layer}: {', '.join(names)}",
                    {**place, "group": number, "names": list(names)},
                    (self.given[0], *(each.key for each in sums)),
                )
                for number, group in enumerate(groups)
                for names in group
            ]
            yield rounded
            made += rounded

    def _portions(self, layer: int, part: int) -> Iterator[tuple[dict[str, int], list[list[tuple[str, ...]]]]]:
        """The place of each portion, and for each of its groups the linears that are rounded together."""
        from bitsmith.calibration.inputs import portions_of
        from bitsmith.models.arch.block import linear_shapes

        config, steps = self.work.config, self.work.steps
        own, shapes = parts_of(config, layer)[part], linear_shapes(config, layer)
        for number, stage in enumerate(own.operation.stages(config, layer, own.before)):
            wanted = {group: tuple(found) for group in stage if (found := steps.formats_of(layer, group))}
            sizes = {group: shapes[group.linears[0]][1] for group in wanted}
            for at, portion in enumerate(portions_of(sizes)):
                place = {"layer": layer, "part": part, "stage": number, "portion": at}
                yield place, [list(_shared(wanted[group], shapes)) for group in portion]

    def _head(self, config: ModelConfig, hidden: Sequence[Task]) -> Iterator[Task]:
        from bitsmith.calibration.collect import HEAD
        from bitsmith.pipeline.block_tasks import HEAD_SLABS
        from bitsmith.quant.rounders.slabs import SLAB_ROWS

        if HEAD not in self.work.task.formats:
            return
        place = {"layer": config.layers, "part": 0, "stage": 0, "portion": 0}
        sums = [
            self._over("sums", "inputs of the head for", place, at, (states.key,))
            for at, states in zip(self.parts, hidden, strict=True)
        ]
        yield from sums
        slabs = -(-self.work.loader.read(f"{HEAD}.weight").info.rows // SLAB_ROWS)
        for first in range(0, slabs, HEAD_SLABS):
            last = min(first + HEAD_SLABS, slabs)
            arguments = {**place, "first": first, "last": last}
            inputs = (self.given[0], *(each.key for each in sums))
            yield Task("pipeline.linears", f"head, parts {first} to {last - 1}", arguments, inputs)

    def _over(
        self, kind: str, said: str, place: Mapping[str, Any], windows: tuple[int, int], inputs: tuple[str, ...]
    ) -> Task:
        """A task over some windows."""
        start, stop = windows
        arguments = {**place, "start": start, "stop": stop}
        return Task(f"pipeline.{kind}", f"{said} windows {start} to {stop - 1}", arguments, (*self.given, *inputs))


def _shared(names: Sequence[str], shapes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, ...]]:
    """The linears of a group by task: a square one or a larger one has its own, since each task factors the Hessian."""
    large = [name for name in names if shapes[name][0] >= shapes[name][1]]
    small = tuple(name for name in names if name not in large)
    yield from ((name,) for name in large)
    if small:
        yield small

"""The statistics pass of `imatrix` on several workers: each takes some windows of the text through the whole model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.config import ImatrixConfig
from bitsmith.calibration.parts import parts_of_windows
from bitsmith.calibration.sources import CalibrationTokens
from bitsmith.calibration.stats import Stats
from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.models.for_workers import files_of, name_for_workers
from bitsmith.recipe.coverage import Coverage
from bitsmith.scale.executors import Site, executor_of
from bitsmith.scale.results import results
from bitsmith.scale.store import Store, open_store
from bitsmith.scale.task import Given, Graph, Task
from bitsmith.system.progress import Progress, Report
from bitsmith.work.folder import WorkFolder
from bitsmith.work.key import program
from bitsmith.work.state import State

if TYPE_CHECKING:
    from bitsmith.calibration.collect import Calibration


def check(config: ImatrixConfig, checkpoint: Checkpoint) -> None:
    """Raise UsageError where workers cannot share the pass."""
    if config.executor is None:
        return
    if config.executor == "slurm":
        raise UsageError("--executor=slurm is for quantize and convert; give local or ray.")
    if config.device not in (None, "cpu"):
        raise UsageError(f"--executor={config.executor}: workers are CPUs; leave out --device={config.device}.")
    if checkpoint.merged:
        raise UsageError(
            f"--executor={config.executor}: workers open a model by its name, but this is a model with an adapter; "
            "write the merged model first, with `bitsmith merge`."
        )
    executor_of(_site(config))


def store_of(config: ImatrixConfig, work: WorkFolder) -> Store:
    """Where results of tasks lie."""
    return open_store(work.tasks if config.work is None else f"{config.work.rstrip('/')}/{work.path.name}")


def collect_spread(
    checkpoint: Checkpoint, tokens: CalibrationTokens, config: ImatrixConfig, work: WorkFolder, report: Report
) -> tuple[Calibration, list[str]]:
    """The statistics that an importance file holds, and notes for the user.

    Sums are those of parts of the text, added in their order, so that they do not depend on the number of workers.
    Raises as `results`.
    """
    from bitsmith.calibration.collect import Calibration

    graph, store = _graph(checkpoint, tokens), store_of(config, work)
    if work.fresh:
        store.remove()
        store = store_of(config, work)
    notes: list[str] = []
    sums: dict[str, Stats] = {}
    routed: dict[int, np.ndarray] = {}
    done, tied = 0, False
    for task, state in results(graph, store, executor_of(_site(config)), told=notes.append):
        _add(sums, routed, state)
        tied = state.values["tied"] is True
        done += int(task.cost)
        report(Progress("calibrate", done, len(tokens.tokens), "windows"))
    coverage = Coverage(routed, tokens.tokens.size, tokens.all_experts) if routed else None
    return Calibration(sums, tokens.record, tied, (), coverage), notes


def _site(config: ImatrixConfig) -> Site:
    assert config.executor is not None
    return Site(config.executor, config.workers, config.threads)


def _graph(checkpoint: Checkpoint, tokens: CalibrationTokens) -> Graph:
    given = Given({}, {"tokens": tokens.tokens})
    model = {"model": name_for_workers(checkpoint), "files": files_of(checkpoint), "every": tokens.all_experts}
    tasks = [
        Task(
            "calibration.windows",
            f"windows {start} to {stop - 1}",
            {**model, "start": start, "stop": stop},
            (given.key,),
            stop - start,
        )
        for start, stop in parts_of_windows(tokens.tokens)
    ]
    return Graph(tasks, [given], program=program())


def _add(sums: dict[str, Stats], routed: dict[int, np.ndarray], state: State) -> None:
    """Add the sums of one part. Linears that share an input share their statistics."""
    none = np.zeros(0, np.float32)
    for number, told in enumerate(state.values["inputs"]):
        square, count, names = state.array(f"square.{number}"), int(told["count"]), told["names"]
        before = sums.get(names[0])
        if before is None:
            found = Stats(count, square, none, none, None, np.zeros((0, len(square)), np.float32))
        else:
            found = replace(before, count=before.count + count, square=before.square + square)
        sums.update(dict.fromkeys(names, found))
    for name in state.names:
        kind, _, layer = name.partition(".")
        if kind == "routed":
            counts = state.array(name)
            routed[int(layer)] = routed[int(layer)] + counts if int(layer) in routed else counts

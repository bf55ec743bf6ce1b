"""Simulation: a graph's tasks on workers that are not there, on a clock that nobody waits for.

The same graph can be run by real workers with tasks that really sleep (`sleeping`).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bitsmith.scale.task import Graph, Task


@dataclass(frozen=True)
class Cluster:
    """Where a graph is run. Rates are bytes a second.

    workers: number of workers, each with one task at a time
    link: of each worker's and of the head's connection to the storage
    storage: of the storage, for all together
    disk: of the head, writing the output and reading it back
    """

    workers: int
    link: float
    storage: float
    disk: float

    @property
    def each(self) -> float:
        """What one worker gets when all transfer at once."""
        return min(self.link, self.storage / self.workers)


@dataclass(frozen=True)
class Need:
    """What a task takes. read, written: bytes; seconds: of computing"""

    read: float
    seconds: float
    written: float


@dataclass(frozen=True)
class Simulated:
    """What became of a graph.

    seconds: until the output is whole; working: until the last worker has ended
    busy: share of the workers' time in which they computed; moved: bytes over the network
    waiting: the most bytes of results that lay in the storage at a time
    """

    seconds: float
    working: float
    busy: float
    moved: float
    waiting: float


def simulate(graph: Graph, needs: Mapping[str, Need], cluster: Cluster) -> Simulated:
    """Run a graph in virtual time: workers take ready tasks in order, the head joins results in order behind them.

    needs: of each task, by key
    """
    free = [0.0] * cluster.workers
    ended: dict[str, float] = {}
    computed = moved = 0.0
    for task in graph.tasks:
        need = needs[task.key]
        begin = max(heapq.heappop(free), *(ended.get(key, 0.0) for key in task.inputs), 0.0)
        ended[task.key] = begin + (need.read + need.written) / cluster.each + need.seconds
        heapq.heappush(free, ended[task.key])
        computed += need.seconds
        moved += need.read + 2 * need.written  # written by the worker, read by the head
    working = max(ended.values(), default=0.0)
    head, output = 0.0, 0.0
    changes: list[tuple[float, float]] = []
    for task in graph.tasks:
        size = needs[task.key].written
        head = max(head, ended[task.key]) + size / cluster.link + size / cluster.disk
        output += size
        changes += [(ended[task.key], size), (head, -size)]
    waiting = most = 0.0
    for _, change in sorted(changes):
        waiting += change
        most = max(most, waiting)
    seconds = head + output / cluster.disk
    return Simulated(seconds, working, computed / (working * cluster.workers) if working else 0.0, moved, most)


def sleeping(graph: Graph, needs: Mapping[str, Need], cluster: Cluster, scale: float) -> Graph:
    """The same graph with tasks that sleep as long as the true ones take, times `scale`."""
    keys: dict[str, str] = {}
    tasks: list[Task] = []
    for task in graph.tasks:
        need = needs[task.key]
        seconds = scale * ((need.read + need.written) / cluster.each + need.seconds)
        inputs = tuple(keys[key] for key in task.inputs if key in keys)
        tasks.append(replace(task, kind="scale.sleep", arguments={**task.arguments, "seconds": seconds}, inputs=inputs))
        keys[task.key] = tasks[-1].key
    return Graph(tasks, program=graph.program)

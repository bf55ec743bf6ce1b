"""A worker: one of several processes that do the tasks of a graph, and know of each other only through its store.

All workers are alike. Each does its own share, and then what others have not done for long. So any of them may be
killed at any time, and one alone finishes the work. Two that do the same task write the same bytes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

from bitsmith.errors import BitsmithError, FileError, UsageError
from bitsmith.scale.results import GRAPH, made_here
from bitsmith.scale.store import LostError, Store, open_store, wait_a_moment
from bitsmith.scale.task import Graph, Place, Task, graph_of
from bitsmith.scale.working import check_program, keep_error

ATTENDED = "BITSMITH_ATTENDED"  # in the environment of workers that end when their standard input ends
_PATIENCE = 5.0  # least seconds without news after which a worker does what is another's
_LONGEST_WAIT = 120.0  # seconds without news and without anything to do


def work(url: str, *, member: int = 0, of: int = 1, threads: int = 1) -> int:
    """Do tasks of the graph at `url` until all are done. Returns how many this worker did.

    member, of: which of how many workers this is, from 0
    Raises UsageError if this is another program than the run's; errors of tasks; FileError.
    """
    if not 0 <= member < of:
        raise UsageError(f"{member}/{of}: expected a member from 0 to {of - 1}.")
    if os.environ.get(ATTENDED):
        threading.Thread(target=_leave_with_head, daemon=True).start()
    store = open_store(url)
    graph = read_graph(store)
    check_program(graph.program)
    return Worker(graph, store, Place(threads), member, of).work()


def read_graph(store: Store) -> Graph:
    """The graph in a store, without what it was given. Raises FileError."""
    try:
        with store.read(GRAPH) as state:
            return graph_of(state.values)
    except LostError as lost:
        raise FileError(f"{store.url}: there is no graph of tasks ({lost.why}); start the run first.") from None


class Worker:
    """One worker's loop."""

    def __init__(
        self,
        graph: Graph,
        store: Store,
        place: Place,
        member: int,
        of: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._graph, self._store, self._place = graph, store, place
        self._member, self._clock = member, clock
        self._own = {task.key for task in graph.tasks[member::of]}
        self._longest = 0.0  # seconds of a task
        self._made: set[str] = set()

    def work(self) -> int:
        """Do tasks until all are done. Returns how many. Raises FileError if nothing can be done for long."""
        known: set[str] = set()  # of all results that were there at some time
        since = self._clock()
        while True:
            keys = self._store.present()
            if not keys <= known | self._made:  # another has done something
                since = self._clock()
            known |= keys
            missing = self._graph.needed(keys, known | self._made)
            if not missing:
                return len(self._made)
            waited = self._clock() - since
            ready = [task for task in missing if keys.issuperset(task.inputs)]
            task = self._choose(ready, waited)
            if task is not None:
                self._do(task)
            elif not ready and waited > _LONGEST_WAIT:
                raise FileError(
                    f"{self._store.url}: what {missing[0].name} reads is not there; start the run's command again."
                )
            else:
                wait_a_moment(self._store)

    def _choose(self, ready: list[Task], waited: float) -> Task | None:
        """The next of this worker's share; if there is none and nothing has happened for long, the last of others'."""
        own = next((task for task in ready if task.key in self._own), None)
        if own is not None or not ready or waited < max(_PATIENCE, 2 * self._longest):
            return own
        return ready[-1 - self._member % len(ready)]

    def _do(self, task: Task) -> None:
        start = self._clock()
        try:
            made_here(self._graph, task, self._store, self._place)
        except LostError:
            return  # the head writes it again
        except BitsmithError as error:
            keep_error(task, self._store, error)
            raise
        self._made.add(task.key)
        self._longest = max(self._longest, self._clock() - start)


def _leave_with_head() -> None:
    """End this process when its head has ended."""
    while sys.stdin.buffer.read(1 << 10):
        pass
    os._exit(1)

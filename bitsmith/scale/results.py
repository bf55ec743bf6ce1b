"""The results of a graph, one after the other, on whatever executor; what storage has lost is made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from bitsmith.errors import FileError
from bitsmith.scale.executors import Executor
from bitsmith.scale.store import LostError, Store
from bitsmith.scale.task import Graph, Place, Task
from bitsmith.scale.working import forget_errors, run_task
from bitsmith.work.state import DamagedError, State

GRAPH = "graph"  # the name of the graph itself in its store
_ATTEMPTS = 3


def results(
    graph: Graph, store: Store, executor: Executor, *, told: Callable[[str], None] = lambda note: None
) -> Iterator[tuple[Task, State]]:
    """Each task whose result is wanted, with it, in the graph's order. The state is open until the next step.

    Results that only tasks read are dropped when these are done.

    told: gets a note for the user about what was made again
    Raises as `Executor.run`; FileError if the storage loses a file again and again.
    """
    for task in _done(graph, store, executor):
        if task.key in graph.ends:
            with _whole(graph, task, store, told, State.check) as state:
                yield task, state


def deliver(
    graph: Graph,
    store: Store,
    executor: Executor,
    take: Callable[[State], None],
    *,
    told: Callable[[str], None] = lambda note: None,
) -> Iterator[Task]:
    """The same for results that are read once: each task whose result is wanted, when `take` has taken it.

    take: gets a state whose arrays are not checked; raises DamagedError if it finds them damaged, and is called again
    """
    for task in _done(graph, store, executor):
        if task.key in graph.ends:
            _whole(graph, task, store, told, take).close()
            yield task


def _done(graph: Graph, store: Store, executor: Executor) -> Iterator[Task]:
    """Each task when it is done, in the graph's order. What only tasks read is dropped behind the last of them."""
    forget_errors(store)
    put_given(graph, store)
    store.write(GRAPH, graph.to_dict(), {})
    readers = Counter(key for task in graph.tasks for key in task.inputs)
    for task in executor.run(graph, store):
        yield task
        for key in task.inputs:
            readers[key] -= 1
            if not readers[key] and key in graph.by_key and key not in graph.ends:
                store.drop(key)


def put_given(graph: Graph, store: Store) -> None:
    """Write what a graph is given, where it is missing."""
    there = store.present() if graph.given else set()
    for key, given in graph.given.items():
        if key not in there:
            store.write(key, given.values, given.arrays)


def made_here(graph: Graph, task: Task, store: Store, place: Place) -> None:
    """Make a result in this process if it is missing, with what it reads. Raises as `mend`; FileError; as the task."""
    if task.key in store.present():
        return
    for _ in range(_ATTEMPTS + len(task.inputs)):
        try:
            run_task(task, store, place)
            return
        except LostError as lost:
            mend(graph, lost.key, store, place)
    raise _unreliable(store)


def mend(graph: Graph, key: str, store: Store, place: Place) -> None:
    """Make again what storage has lost: a result, or what the graph was given.

    Raises LostError for what only the head has.
    """
    store.drop(key)
    if key in graph.by_key:
        made_here(graph, graph.by_key[key], store, place)
    elif key in graph.given:
        store.write(key, graph.given[key].values, graph.given[key].arrays)
    else:
        raise LostError(key, "is lost")


def _whole(graph: Graph, task: Task, store: Store, told: Callable[[str], None], use: Callable[[State], None]) -> State:
    """The result of a task behind its `use`, which tells by a DamagedError that it must be made again."""
    for _ in range(_ATTEMPTS):
        try:
            state = store.read(task.key)
            try:
                use(state)
                return state
            except DamagedError as error:
                state.close()
                raise LostError(task.key, f"is damaged ({error})") from error
            except BaseException:
                state.close()
                raise
        except LostError as lost:
            told(f"the result of {task.name} in {store.url} {lost.why}; it is made again")
            mend(graph, task.key, store, Place())
    raise _unreliable(store)


def _unreliable(store: Store) -> FileError:
    return FileError(f"{store.url} loses files again and again; use other storage, with --work.")

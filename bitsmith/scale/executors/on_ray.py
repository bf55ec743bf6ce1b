"""Tasks on a cluster of Ray: this process hands them out, and workers read and write the store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from bitsmith.errors import BitsmithError, ResourceError, UsageError
from bitsmith.scale.executors import Site
from bitsmith.scale.results import mend
from bitsmith.scale.store import LostError, Store, open_store
from bitsmith.scale.task import Graph, Place, Task
from bitsmith.scale.working import check_program, error_of, run_task

_ATTEMPTS = 20  # of one task, each on another worker after one has died
_SHORT_ATTEMPTS = 4  # of one task for which memory runs out
_AHEAD = 2  # tasks in flight for each processor of the cluster


class OnRay:
    """Tasks on the cluster at an address; without one, on the cluster that RAY_ADDRESS names, or on this machine."""

    def __init__(self, site: Site) -> None:
        """Raises UsageError if Ray is not installed."""
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                f"--executor={site.name} needs Ray, which is not installed ({error}); "
                "`pip install 'bitsmith[ray]'` here and where workers run."
            ) from error
        self._ray: Any = ray
        self._address = site.name if "://" in site.name else None
        self._workers, self._threads = site.workers, site.threads or 1

    def run(self, graph: Graph, store: Store) -> Iterator[Task]:
        """See `Executor`."""
        ours = not self._ray.is_initialized()  # a program that calls us may be connected already
        if ours:
            self._connect()
        try:
            yield from _Handing(self._ray, graph, store, self._threads, self._workers).run()
        finally:
            if ours:
                self._ray.shutdown()

    def _connect(self) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = self._address or os.environ.get("RAY_ADDRESS", "this machine")
            raise ResourceError(
                f"the Ray cluster at {where} cannot be reached ({error}); check its address and that it runs."
            ) from error


class _Handing:
    """Hands the tasks of one graph to a cluster."""

    def __init__(self, ray: Any, graph: Graph, store: Store, threads: int, workers: int | None) -> None:
        self._ray, self._graph, self._store, self._threads = ray, graph, store, threads
        self._workers = workers
        self._remote = ray.remote(num_cpus=threads, max_retries=0)(_on_worker)
        self._flying: dict[Any, Task] = {}
        there = store.present()
        self._waiting = graph.needed(there)
        self._done = {task.key for task in graph.tasks} - {task.key for task in self._waiting}
        self._tasks = [task for task in graph.tasks if task.key not in self._done or task.key in graph.ends]
        self._tries: dict[str, int] = {}

    def run(self) -> Iterator[Task]:
        """Each task in the graph's order, when it is done."""
        for task in self._tasks:
            while task.key not in self._done:
                self._hand_out()
                self._collect()
            yield task

    def _hand_out(self) -> None:
        limit = self._workers or _AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)) // self._threads)
        at = 0
        while len(self._flying) < limit and at < len(self._waiting):
            task = self._waiting[at]
            if all(key in self._done or key not in self._graph.by_key for key in task.inputs):
                del self._waiting[at]
                reference = self._remote.options(name=task.name).remote(
                    self._store.url, task.to_dict(), self._graph.program, self._threads
                )
                self._flying[reference] = task
            else:
                at += 1

    def _collect(self) -> None:
        """Wait for a task, and count it as done or hand it out again."""
        done, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=1.0)
        for reference in done:
            task = self._flying.pop(reference)
            try:
                kind, message = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._again(task, error)
                continue
            if kind == "lost":
                mend(self._graph, message, self._store, Place(self._threads))
                self._again(task, None)
            elif kind == ResourceError.__name__:  # another worker may have more memory
                self._again(task, error_of(kind, message))
            elif kind:
                raise error_of(kind, message)
            else:
                self._done.add(task.key)

    def _again(self, task: Task, error: Exception | None) -> None:
        """Put a task that was not done before all others."""
        self._tries[task.key] = self._tries.get(task.key, 0) + 1
        if isinstance(error, ResourceError) and self._tries[task.key] >= _SHORT_ATTEMPTS:
            raise error
        if self._tries[task.key] == _ATTEMPTS:
            why = "storage loses what it reads" if error is None else str(error).strip().splitlines()[0]
            raise ResourceError(f"{task.name} failed {_ATTEMPTS} times on the cluster ({why}); look at its workers.")
        self._waiting.insert(0, task)


def _on_worker(url: str, task: Mapping[str, Any], program: Mapping[str, Any], threads: int) -> tuple[str, str]:
    """Run a task. Returns the kind and the message of an error, or "lost" and a key; empty strings if all is well."""
    try:
        check_program(program)
        run_task(Task.from_dict(task), open_store(url), Place(threads))
    except LostError as lost:
        return "lost", lost.key
    except BitsmithError as error:
        return type(error).__name__, error.message
    return "", ""

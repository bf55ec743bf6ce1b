"""Tasks on this machine: in this process, or in several worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

from bitsmith.errors import ResourceError
from bitsmith.scale.executors import Site
from bitsmith.scale.results import made_here, put_given
from bitsmith.scale.store import Store, wait_a_moment
from bitsmith.scale.task import Graph, Place, Task
from bitsmith.scale.worker import ATTENDED
from bitsmith.scale.working import raise_errors
from bitsmith.system.machine import cores

_STARTS = 10  # of one worker while nothing gets done


class Local:
    """Tasks in this process, or in worker processes on this machine, which are started again when they die."""

    def __init__(self, site: Site) -> None:
        self._workers = site.workers or 1
        self._threads = site.threads or max(1, cores() // self._workers)

    def run(self, graph: Graph, store: Store) -> Iterator[Task]:
        """See `Executor`."""
        there = store.present()
        needed = graph.needed(there)
        waiting = {task.key for task in needed} | graph.ends
        tasks = [task for task in graph.tasks if task.key in waiting]
        if self._workers == 1 or not needed:
            for task in tasks:
                made_here(graph, task, store, Place(self._threads))
                yield task
            return
        workers = [_Worker(store.url, number, self._workers, self._threads) for number in range(self._workers)]
        try:
            for task in tasks:
                while task.key not in (keys := store.present()):
                    raise_errors(store, keys)
                    put_given(graph, store)
                    for worker in workers:
                        worker.keep_alive(len(keys))
                    wait_a_moment(store)
                yield task
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A worker process. It ends by itself when this process has ended, since its standard input then does."""

    def __init__(self, url: str, number: int, of: int, threads: int) -> None:
        self._words = [sys.executable, "-m", "bitsmith", "worker", url, f"{number}/{of}", f"--threads={threads}"]
        self._starts = self._results = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.keep_alive(0)

    def keep_alive(self, results: int) -> None:
        """Start it again if it has died. Raises ResourceError if it dies again and again.

        results: in the store; whether anything gets done
        """
        code = None if self._process is None else self._process.poll()
        if self._process is not None and (code is None or code == 0):
            return
        if results > self._results:
            self._starts, self._results = 0, results
        if self._starts == _STARTS:
            raise ResourceError(
                f"a worker died {_STARTS} times in a row{_how(code)}; look at its messages, or use fewer --workers."
            )
        self._starts += 1
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, env={**os.environ, ATTENDED: "1"})

    def stop(self) -> None:
        """End the process."""
        if self._process is None:
            return
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _how(code: int | None) -> str:
    """How a process ended, in words."""
    if code == -signal.SIGKILL:
        return ", the last time killed by the system, as it does where memory runs out"
    return "" if code is None else f", the last time with exit code {code}"

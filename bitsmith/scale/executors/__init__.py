"""Executors: what runs the tasks of a graph. One row each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from bitsmith.errors import UsageError, quoted
from bitsmith.scale.store import Store
from bitsmith.scale.task import Graph, Task


class Executor(Protocol):
    """Runs the tasks of a graph, in any order that the graph allows, wherever it wants."""

    def run(self, graph: Graph, store: Store) -> Iterator[Task]:
        """Give each task, in the graph's order, once its result seems to be in the store.

        Raises BitsmithErrors of tasks; ResourceError if workers die again and again; Submitted.
        """
        ...


@dataclass(frozen=True)
class Site:
    """What an executor knows of the run.

    name: of the executor, as the user gave it
    workers: how many; None: the executor chooses
    threads: of one task; None: the executor chooses
    beside: where scripts go: a path that is made from the output's
    command: the command that the user gave, without its executor
    """

    name: str
    workers: int | None = None
    threads: int | None = None
    beside: Path = Path("bitsmith")
    command: Sequence[str] = ()


class Submitted(Exception):  # noqa: N818 - nothing went wrong
    """The work was handed over, and goes on elsewhere. script: what the user starts next"""

    def __init__(self, script: Path) -> None:
        super().__init__(f"run {script}")
        self.script = script


EXECUTORS = {  # name -> its module in this package, and the class there
    "local": "local.Local",
    "ray": "on_ray.OnRay",
    "slurm": "slurm.Slurm",
}
_RAY = "ray://"


def check_executor(name: str) -> None:
    """Raise UsageError for a name that no executor has."""
    if name not in EXECUTORS and not name.startswith(_RAY):
        raise UsageError(f"--executor={quoted(name)} is unknown; expected {', '.join(EXECUTORS)}, or ray://HOST:PORT.")


def executor_of(site: Site) -> Executor:
    """The executor of a name. Raises UsageError if it is unknown, or not installed."""
    check_executor(site.name)
    module, made = EXECUTORS["ray" if site.name.startswith(_RAY) else site.name].split(".")
    found: Callable[[Site], Executor] = vars(import_module(f"{__name__}.{module}"))[made]
    return found(site)

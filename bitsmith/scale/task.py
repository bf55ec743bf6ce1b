"""Tasks: named functions with plain arguments that read and write files, and the graph that they form.

The file of a result is named by a hash of everything that decides its content: the function, its arguments and the keys
of what it reads. So a result is found again by whoever needs it, and a task that runs twice writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import FileError
from bitsmith.work.state import Arrays, State

_DIGITS = 24
_ROOMS = ("calibration", "comparison", "pipeline", "scale")  # that have a table of functions, in their `task_functions`


@dataclass(frozen=True)
class Place:
    """Where a task runs. threads: that it may use"""

    threads: int = 1


Result = tuple[Mapping[str, Any], Arrays]  # plain values for JSON, and arrays
Function = Callable[[Mapping[str, Any], Sequence[State], Place], Result]  # arguments, what it reads, where it runs


@dataclass(frozen=True)
class Task:
    """One piece of work.

    kind: its function, "pipeline.round": a room and a name in the table of that room's `task_functions`
    name: for the user
    arguments: plain values for JSON
    inputs: keys of what it reads
    cost: what it takes beside other tasks, for progress and for plans
    """

    kind: str
    name: str
    arguments: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    cost: float = field(default=1.0, compare=False)

    @cached_property
    def key(self) -> str:
        """The name of its result."""
        content = [self.kind, self.arguments, self.inputs]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**{name: value for name, value in vars(self).items() if name != "key"}, "inputs": list(self.inputs)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Task:
        """The task of plain values. Raises KeyError, TypeError or ValueError for others."""
        inputs = tuple(str(each) for each in found["inputs"])
        arguments = found["arguments"]
        if not isinstance(arguments, dict):
            raise TypeError("arguments")
        return cls(str(found["kind"]), str(found["name"]), arguments, inputs, float(found["cost"]))


@dataclass(frozen=True)
class Given:
    """What tasks read and no task makes. values: plain values for JSON"""

    values: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Its name: a hash of its content."""
        digest = hashlib.sha256(json.dumps(self.values, sort_keys=True).encode())
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:_DIGITS]


class Graph:
    """Tasks in an order in which each comes behind those whose results it reads.

    tasks: in order
    ends: keys of the results that are wanted; the others are read by tasks alone, and are dropped when none needs them
    given: by key, what no task makes; only the head has it
    program: what computes, see `bitsmith.work.key.program`; a worker of another program is refused
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        given: Iterable[Given] = (),
        *,
        program: Mapping[str, Any],
        known: Iterable[str] = (),
        ends: Iterable[str] | None = None,
    ) -> None:
        """Raises ValueError for a task that reads what comes later, or is there twice.

        known: keys of what is given, where its content is not at hand
        ends: None: all
        """
        self.tasks = tuple(tasks)
        self.given = {each.key: each for each in given}
        self.program = dict(program)
        self.by_key: dict[str, Task] = {}
        outside = {*self.given, *known}
        for task in self.tasks:
            missing = [key for key in task.inputs if key not in self.by_key and key not in outside]
            if missing or task.key in self.by_key:
                raise ValueError(f"{task.name}: reads {missing}, which no task before it makes, or is there twice")
            self.by_key[task.key] = task
        self.ends = frozenset(self.by_key if ends is None else ends)

    def needed(self, there: Container[str], seen: Container[str] = ()) -> list[Task]:
        """The tasks that are still to be done, in order: for the wanted results, and for what these read.

        there: keys of the results that exist; seen: of those that existed at some time, and may be dropped
        """
        found: set[str] = set()
        for task in reversed(self.tasks):
            wanted = task.key in found or (task.key in self.ends and task.key not in there and task.key not in seen)
            if wanted:
                found.add(task.key)
                found.update(key for key in task.inputs if key in self.by_key and key not in there)
        return [task for task in self.tasks if task.key in found]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what is given."""
        tasks = [task.to_dict() for task in self.tasks]
        return {"program": self.program, "given": list(self.given), "ends": sorted(self.ends), "tasks": tasks}


def graph_of(found: Mapping[str, Any]) -> Graph:
    """The graph of its plain values, without what it was given. Raises FileError if they are no graph."""
    try:
        program = found["program"]
        if not isinstance(program, dict):
            raise TypeError("program")
        known, ends = map(str, found["given"]), map(str, found["ends"])
        return Graph(map(Task.from_dict, found["tasks"]), program=program, known=known, ends=ends)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"the graph of tasks cannot be read ({error}); start the run again.") from error


def function_of(kind: str) -> Function:
    """The function of a kind of tasks. Raises FileError for one that does not exist.

    A graph comes from a file, so only functions that a room has listed can be called.
    """
    room, _, name = kind.partition(".")
    table: Mapping[str, Function] = {}
    if room in _ROOMS:
        table = vars(import_module(f"bitsmith.{room}.task_functions"))["TASKS"]
    if name not in table:
        raise FileError(f"{kind}: there is no such task; start the run again with the version of this worker.")
    return table[name]


def scratch_name(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    import uuid

    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")

"""What a runtime is: which files it holds, what it needs beside them, how it is started, and how it is checked."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitsmith.errors import UnsupportedError
from bitsmith.handover.subject import FLOATS, FOREIGN, Subject


def flag(name: str, *values: str) -> tuple[str, ...]:
    """A flag of another program and its values, as words of a command."""
    return (f"--{name}", *values)


@dataclass(frozen=True)
class Tolerance:
    """How far a runtime's log probabilities may lie from ours, in nats.

    mean: mean over positions of the difference, each token weighted by its probability
    worst: the same at the worst position
    tie: two tokens whose log probabilities differ by less may change places
    """

    mean: float
    worst: float
    tie: float

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {"mean": self.mean, "worst": self.worst, "tie": self.tie}


EXACT = Tolerance(0.002, 0.02, 0.01)  # float32 on both sides
HALF = Tolerance(0.05, 0.5, 0.5)  # 16-bit products, or inputs of 8 bits


@dataclass(frozen=True)
class Prepared:
    """What a runtime needs beside the file.

    command: starts it, a word each
    files: small files to write, by name in the folder of the handover
    links: files of the model that must have another place, by name in that folder
    notes: what the user should know
    """

    command: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class Probing:
    """How a runtime is checked.

    file: the program that asks it, in `probes/`
    package: the Python package that its environment must have
    program: a program on the path that does instead; "" if there is none
    tolerance: for a file -> how far results may lie apart
    request: for a file -> further entries of the request
    """

    file: str
    package: str
    tolerance: Callable[[Subject], Tolerance]
    program: str = ""
    request: Callable[[Subject], dict[str, Any]] = lambda subject: {}


@dataclass(frozen=True)
class Runtime:
    """A program that runs models: a row of `RUNTIMES`.

    name: as in `--for`
    containers: what it holds, see `Subject.container`
    instead: the command that makes a file for it from the original model
    prepare: (file, folder of the handover) -> what it needs
    refuses: for a file in one of its containers -> why it cannot hold it; "" if it can
    install: how it is installed
    probing: how it is checked; None if it cannot be started on this kind of machine
    unchecked: why it is not checked, where `probing` is None
    engine: the runtime that a check starts in its place, which computes for it; "" if it is started itself
    own_template: what says the chat template in place of the file's own; "" if nothing does
    """

    name: str
    title: str
    containers: frozenset[str]
    instead: str
    prepare: Callable[[Subject, Path], Prepared]
    install: str
    refuses: Callable[[Subject], str] = lambda subject: ""
    probing: Probing | None = None
    unchecked: str = ""
    engine: str = ""
    own_template: str = ""

    @property
    def started(self) -> str:
        """What a check starts."""
        return f"{self.engine} (the engine of {self.title})" if self.engine else self.title

    def check_holds(self, subject: Subject) -> None:
        """Raise UnsupportedError if the runtime cannot hold the file, with what to do."""
        if subject.container == FOREIGN:
            reason = "its codes are not known to bitsmith, so nothing can be compared"
        elif subject.container not in self.containers:
            reason = f"{self.title} does not read {_named(subject.container)}"
        else:
            reason = self.refuses(subject)
        if reason:
            raise UnsupportedError(f"{subject.path}: {reason}. {self._instead(subject)}")

    def _instead(self, subject: Subject) -> str:
        """How a file for the runtime is made: of this model, where it is in 16 bits, or of its original."""
        if subject.container == FLOATS:
            command = self.instead.replace("MODEL", shlex.quote(str(subject.path)), 1)
            return f"Make a file for it: `{command}`."
        return (
            f"Make a file for it from the original model: `{self.instead}`, where MODEL is the folder or hub name that "
            "this file was made from."
        )


def _named(container: str) -> str:
    return {"gguf": "GGUF files", "floats": "folders in 16 bits"}.get(container, f"{container} folders")

"""The options of `bitsmith handover`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict

from bitsmith.errors import UsageError
from bitsmith.handover.runtimes import RUNTIMES
from bitsmith.system.options import REQUIRED, option


@dataclass(frozen=True)
class HandoverConfig:
    """How a file is handed over."""

    runtime: str = option(
        REQUIRED, "--for", group="Options", metavar="RUNTIME", help=f"The runtime: {', '.join(RUNTIMES)}."
    )
    out: str | Path | None = option(
        None,
        "-o",
        group="Output",
        metavar="DIR",
        help="Folder for what the runtime needs and for the receipt; default: NAME-RUNTIME in the working folder.",
    )
    check: bool = option(
        False,
        group="Options",
        help="Start the runtime on the file and compare: log probabilities, greedy text, chat template, a tool call.",
    )
    python: str | None = option(
        None,
        group="Options",
        metavar="EXE",
        help="The Python of the runtime's environment; default: a program on the path, or this Python.",
    )
    original: str | Path | None = option(
        None, group="Options", metavar="MODEL", help="The model that the file was made from: compared too by --check."
    )
    timeout: float = option(900.0, group="Options", metavar="SECONDS", help="Most time that the runtime may take.")
    force: bool = option(False, group="Output", help="Replace an output that exists.")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UsageError(f"--timeout={self.timeout}: expected a positive number of seconds.")
        if not self.check and (self.python is not None or self.original is not None):
            raise UsageError("--python and --original are for --check; give it too.")


class HandoverWords(TypedDict, total=False):
    """The keywords of `hand_over`."""

    runtime: Required[str]
    out: str | Path | None
    check: bool
    python: str | None
    original: str | Path | None
    timeout: float
    force: bool

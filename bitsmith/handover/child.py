"""Starts a probe in the Python of another runtime and collects its answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bitsmith.errors import UnsupportedError, printable
from bitsmith.handover.probes.child import MARK
from bitsmith.handover.runtime import Runtime

_PROBES = Path(__file__).parent / "probes"
_LAST = 4000  # characters of what a runtime printed that are kept for a message
_MOST = 64 << 20  # bytes of answers
_FIND = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec(sys.argv[1]) else 3)"
_FIND_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """Where a runtime was found.

    python: the Python that starts the probe
    program: the runtime's own program; "" if the Python package does it
    """

    python: str
    program: str = ""


@dataclass
class Told:
    """What a probe answered.

    error: why it ended early; "" if it did not
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    chats: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    top: list[Mapping[str, float]] = field(default_factory=list)
    greedy: list[int] = field(default_factory=list)
    tool_call: Mapping[str, Any] | None = None
    parsed_call: Mapping[str, Any] | None = None
    error: str = ""
    done: bool = False


def find_place(runtime: Runtime, python: str | None) -> Place:
    """Where the runtime is. python: the Python of its environment; None: a program on the path, or this Python

    Raises UnsupportedError if it is not there, with what to install.
    """
    probing = runtime.probing
    if probing is None:
        raise UnsupportedError(f"{runtime.title} cannot be checked: {runtime.unchecked}.")
    if python is not None:
        found = shutil.which(os.path.expanduser(python))
        if found is None:
            raise UnsupportedError(f"--python={python}: there is no such program; give the path of a Python.")
        if not _has(found, probing.package):
            raise UnsupportedError(f"--python={python}: {probing.package} is not installed there; {runtime.install}.")
        return Place(found)
    program = shutil.which(probing.program) if probing.program else None
    if program is not None:
        return Place(sys.executable, program)
    if find_spec(probing.package) is not None:
        return Place(sys.executable)
    raise UnsupportedError(f"{runtime.started} was not found, so the file cannot be checked; {runtime.install}.")


def _has(python: str, package: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-c", _FIND, package], capture_output=True, timeout=_FIND_SECONDS, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedError(f"--python={python} does not start ({error}); give the path of a Python.") from error
    return done.returncode == 0


def ask(runtime: Runtime, place: Place, request: Mapping[str, Any], *, seconds: float) -> Told:
    """Start the runtime, ask it, and end it. What goes wrong there stands in the result's `error`."""
    assert runtime.probing is not None
    asked = {**request, "program": place.program}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [place.python, str(_PROBES / "child.py"), str(_PROBES / runtime.probing.file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=environment,
        cwd="/",
    )
    printed = bytearray()
    reader = threading.Thread(target=_drain, args=(process, printed), daemon=True)
    reader.start()
    timer = threading.Timer(seconds, _end, [process])
    timer.start()
    told = Told()
    try:
        _give(process, json.dumps(asked).encode())
        _listen(process, told)
        process.wait()
    finally:
        timed_out = not timer.is_alive()
        timer.cancel()
        _end(process)
        process.wait()
        reader.join(5)
    if not told.done and not told.error:
        last = printable(printed.decode(errors="replace"))[-_LAST:].strip().splitlines()[-6:]
        why = f"took more than {seconds:.0f} s" if timed_out else f"ended with code {process.returncode}"
        told.error = f"{runtime.started} {why}" + (f"; its last words: {' | '.join(last)}" if last else "")
    return told


def _give(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended already; its words say why
        process.stdin.write(data)
        process.stdin.close()


def _listen(process: subprocess.Popen[bytes], told: Told) -> None:
    assert process.stdout is not None
    mark, held = MARK.encode(), 0
    for line in process.stdout:
        if not line.startswith(mark):
            continue
        held += len(line)
        if held > _MOST:
            told.error = "its answers are too long"
            return
        try:
            _take(json.loads(line[len(mark) :]), told)
        except (ValueError, KeyError, TypeError) as error:
            told.error = f"an answer cannot be read: {error}"
            return


def _take(found: Mapping[str, Any], told: Told) -> None:
    event = found["event"]
    if event == "ready":
        told.versions = {str(name): str(value) for name, value in found["versions"].items()}
    elif event == "chat":
        told.chats[found["name"]] = found
    elif event == "scores":
        told.top = [{str(token): float(value) for token, value in row.items()} for row in found["top"]]
    elif event == "greedy":
        told.greedy = [int(token) for token in found["ids"]]
    elif event == "tool_call":
        told.tool_call = found
    elif event == "parsed_call":
        told.parsed_call = found
    elif event == "error":
        told.error = printable(f"{found['kind']}: {found['text']}")
    elif event == "done":
        told.done = True


def _drain(process: subprocess.Popen[bytes], kept: bytearray) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        kept += line
        del kept[: -4 * _LAST]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

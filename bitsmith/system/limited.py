"""Runs code that files bring along (chat templates, patterns) in a process with limits on time, memory and output.

Such code cannot be bounded from within: a template can double a tuple, a pattern can backtrack for hours. The process
gets no files, no environment and no more memory than allowed, and it is killed from outside when its time is over.
On Linux the system holds the limit of memory; on other systems the process watches itself, which is slower to act.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("limited_child.py")
_START_SECONDS = 20.0  # for Python's start; it takes a tenth of a second on an idle machine
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")  # what Python needs to start, and the time zone


class LimitError(Exception):
    """A request passed a limit. The text says which: "takes more than 10 s"."""


class LimitedProcess:
    """Answers requests with the function `answer` of a file, in a process of its own that is kept while it behaves.

    task: a Python file that imports nothing but the standard library and `packages`
    packages: names of installed packages that the task may import
    memory: bytes of address space
    seconds: for one request
    reply_bytes: size of a reply as JSON
    first: a request that every new process gets before any other; its reply is not looked at
    """

    def __init__(
        self,
        task: Path,
        *,
        packages: Sequence[str] = (),
        memory: int = 512 << 20,
        seconds: float = 10.0,
        reply_bytes: int = 64 << 20,
        first: Mapping[str, Any] | None = None,
    ) -> None:
        self._task, self._packages = task, packages
        self._memory, self._seconds, self._reply_bytes = memory, seconds, reply_bytes
        self._first = first
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self.close = weakref.finalize(self, _end, self._running)

    def ask(self, request: Mapping[str, Any], *, more_seconds: float = 0.0) -> dict[str, Any]:
        """The task's reply to a request of plain JSON values.

        more_seconds: added to the time for this request
        Raises LimitError if it takes more time, memory or output than allowed; the process is then gone, and the next
        request starts another.
        """
        seconds = self._seconds + more_seconds
        payload = _payload(request, seconds)
        with self._lock:
            try:
                if self._running and self._running[0].poll() is not None:  # ended from outside while it waited
                    _end(self._running)
                process = self._running[0] if self._running else self._start()
                reply: dict[str, Any] = json.loads(self._exchange(process, payload, seconds))
            except BaseException:  # Ctrl-C too: nothing is left running
                _end(self._running)
                raise
        if "error" in reply:
            raise LimitError(self._too_much_memory())
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        given = {"task": str(self._task), "paths": _places(self._packages), "memory": self._memory}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_CHILD), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            cwd=os.sep,
            process_group=0,  # Ctrl-C is for us; we end it
        )
        self._running.append(process)
        self._exchange(process, b"", _START_SECONDS)
        if self._first is not None:
            self._exchange(process, _payload(self._first, self._seconds), self._seconds)
        return process

    def _exchange(self, process: subprocess.Popen[bytes], payload: bytes, seconds: float) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        to, back = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(to, False)
        left = memoryview(payload)
        reply = bytearray()
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(back, selectors.EVENT_READ)
            if left:
                ready.register(to, selectors.EVENT_WRITE)
            while len(reply) < 8 or len(reply) < 8 + int.from_bytes(reply[:8], "little"):
                events = ready.select(max(0.0, end - time.monotonic()))
                if not events:
                    raise LimitError(f"takes more than {seconds:g} s")
                for key, _ in events:
                    if key.fd == back:
                        reply += self._read(process, back, seconds)
                    else:
                        left = self._write(process, to, left, seconds)
                        if not left:
                            ready.unregister(to)
                if int.from_bytes(reply[:8], "little") > self._reply_bytes:
                    raise LimitError(f"writes more than {self._reply_bytes >> 20} MB")
        return bytes(reply[8:])

    def _read(self, process: subprocess.Popen[bytes], descriptor: int, seconds: float) -> bytes:
        piece = os.read(descriptor, 1 << 20)
        if not piece:
            raise self._death(process, seconds)
        return piece

    def _write(self, process: subprocess.Popen[bytes], descriptor: int, left: memoryview, seconds: float) -> memoryview:
        try:
            return left[os.write(descriptor, left[: 1 << 16]) :]
        except BrokenPipeError:
            raise self._death(process, seconds) from None

    def _death(self, process: subprocess.Popen[bytes], seconds: float) -> LimitError:
        """Why the process ended by itself."""
        try:
            code = process.wait(2)
        except subprocess.TimeoutExpired:
            code = 0
        if code == -signal.SIGXCPU:
            return LimitError(f"takes more than {seconds:g} s")
        if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):  # the system, or a person
            return LimitError("takes more memory or time than the system allows, or its process was ended from outside")
        return LimitError(self._too_much_memory())

    def _too_much_memory(self) -> str:
        return f"takes more than {self._memory >> 20} MB of memory, or nests too deeply"


def _payload(request: Mapping[str, Any], seconds: float) -> bytes:
    """A request as it is sent: its length, and JSON."""
    text = json.dumps({**request, "seconds": seconds}).encode()
    return len(text).to_bytes(8, "little") + text


def _places(packages: Sequence[str]) -> list[str]:
    """Folders that hold the packages."""
    found = [find_spec(name) for name in packages]
    return list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin))


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    """Kill the process, if there is one."""
    while running:
        process = running.pop()
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()

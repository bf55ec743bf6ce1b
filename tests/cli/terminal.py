"""A command on a pseudo-terminal: what it shows is waited for, what a person types is sent."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType

PATIENCE = 60.0  # seconds; a loaded machine is slow
# The first line makes the terminal the session's own, so that Ctrl-C reaches the command
_PROGRAM = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); from bitsmith.cli import main; main()"
_PROMPT = b"\x1b[?2004h"  # prompt_toolkit asks for bracketed paste where a prompt begins
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_>=]|\x1b\][^\x07]*\x07")


class Terminal:
    """`bitsmith` with these words on a terminal of 200 columns. Use it in a `with`."""

    def __init__(self, *words: object, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        surroundings = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": "1", **env}
        command = [sys.executable, "-c", _PROGRAM, *map(str, words)]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=surroundings, start_new_session=True
        )
        os.close(slave)
        self.raw = b""
        self._seen = 0  # bytes shown before the present prompt
        self._prompts = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def send(self, text: str) -> None:
        """Type this."""
        self.send_bytes(text.encode())

    def send_bytes(self, data: bytes) -> None:
        """Type these bytes."""
        while data:
            self._fill(0.0)  # or both sides wait for each other
            _, ready, _ = select.select([], [self._master], [], PATIENCE)
            assert ready, "the command does not read"
            data = data[os.write(self._master, data[:512]) :]

    def paste(self, text: str) -> None:
        """Paste this, as a terminal with bracketed paste does."""
        self.send(f"\x1b[200~{text}\x1b[201~")

    def prompt(self) -> str:
        """Wait until the next message can be typed; what was shown since the last time."""
        self._prompts += 1
        self._wait(lambda: self.raw.count(_PROMPT) >= self._prompts, "the next prompt")
        start, self._seen = self._seen, len(self.raw)
        return self._plain(start)

    def answer(self) -> None:
        """Wait until an answer has begun: characters on the line behind that of the message."""
        self._wait(lambda: re.search(r"\n\r?[^\r\n\x1b]", self._plain(self._seen)) is not None, "an answer")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, f"{what} did not come, but: {self._plain(self._seen)[-2000:]!r}"
            if not self._fill(1.0) and self.process.poll() is not None:
                raise AssertionError(f"the command ended without {what}: {self._plain(self._seen)[-2000:]!r}")

    def _plain(self, start: int) -> str:
        """What was shown from this byte on, without escape sequences."""
        return _ESCAPES.sub("", self.raw[start:].decode("utf-8", "replace"))

    def leave(self) -> int:
        """Wait for the command's end; its exit code."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < end:
            self._fill(0.2)
        return self.process.wait(1)

    def _fill(self, patience: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], patience)
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += data
        return bool(data)

"""Ctrl-C while the program starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def quiet_start() -> Iterator[None]:
    """SIGINT ends the process at once, with exit code 130, while modules are imported.

    No work has begun then, so nothing has to be cleaned up. The usual KeyboardInterrupt would be printed as a
    traceback, or be lost inside the import.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if usual:
            signal.signal(signal.SIGINT, _leave)
    except ValueError:  # not in the main thread, which alone receives signals
        usual = False
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"Interrupted.\n")
    os._exit(130)

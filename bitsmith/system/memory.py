"""The memory that a process can still use."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from bitsmith.system.control_group import memory_room
from bitsmith.system.machine import own_memory, peak_memory

_LOOKED_EVERY = 0.005  # seconds
_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD


def available_memory() -> int | None:
    """Bytes that can be used without swapping, within a container's limit; None if the system does not tell.

    Linux: MemAvailable of /proc/meminfo and the control group's limit; elsewhere half of the physical memory.
    """
    system = _meminfo(Path("/proc/meminfo"))
    group = memory_room()
    known = [value for value in (system, group) if value is not None]
    if known:
        return min(known)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None


def give_freed_memory_back(least: int) -> None:
    """Let the system have freed blocks of `least` bytes and more again at once, where the C library is glibc.

    It keeps blocks of up to 32 MB for later otherwise. Taking many small ones from the system again and again takes
    time.
    """
    import ctypes

    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, least)
    trim(0)


def trim_memory() -> None:
    """Let the system have all freed memory that the C library keeps for later, where it is glibc."""
    import ctypes

    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class OwnMemoryPeak:
    """The most memory that this process has of its own while the block runs, without pages of mapped files.

    The system tells only the peak with such pages, so the memory is looked at all the time: shorter peaks are missed.
    bytes: above what there was at the start
    """

    def __enter__(self) -> OwnMemoryPeak:
        self._start = own_memory() or peak_memory()
        self._most, self._ended = self._start, threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOKED_EVERY):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, own_memory() or peak_memory())

    @property
    def bytes(self) -> int:
        """So far."""
        self._look()
        return self._most - self._start


def _meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None

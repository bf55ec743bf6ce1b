"""The memory that a process can still use."""

from __future__ import annotations

import os
from pathlib import Path

from bitsmith.system.control_group import memory_room

_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD
_RETURNED = 1 << 20  # blocks of so many bytes go back to the system when they are freed


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


def give_freed_memory_back() -> None:
    """Let the system have freed memory again at once, where the C library is glibc.

    It keeps blocks of up to 32 MB for later otherwise, so that a training on a CPU holds twice what it uses.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _RETURNED)


def _meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None

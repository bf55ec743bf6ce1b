"""This machine: its cores, and the memory that this process has used."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from bitsmith.errors import UsageError
from bitsmith.system.control_group import processors

MOST_THREADS = 1024


def cores() -> int:
    """Number of processors that this process may use: those it is bound to, within its control group's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, processors() or bound)


def check_threads(threads: int | None) -> None:
    """Raise UsageError if the number of threads is out of range. None is allowed."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads={threads}: expected 1 to {MOST_THREADS}; this machine has {cores()} cores.")


def mapped_memory() -> int:
    """Bytes of files that are mapped and in memory now, which the system can drop; 0 where it does not tell.

    `peak_memory` counts them too.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssFile:")).split()[1])
    except (OSError, StopIteration, ValueError):
        return 0


def own_memory() -> int:
    """Bytes of physical memory that this process has now, without pages of files; 0 where the system does not tell."""
    try:
        resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def peak_memory() -> int:
    """Most physical memory that this process has used, in bytes.

    On Linux it comes from /proc, because getrusage there includes the program that started this one. getrusage counts
    in kilobytes, except on macOS.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

"""The machine at hand: its cores, and what this process has taken of its memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from bitsmith.errors import UsageError

MOST_THREADS = 1024


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Raise UsageError for a number of threads out of range; None is the program's choice."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads {threads}: expected 1 to {MOST_THREADS}; this machine has {cores()} cores.")


def peak_memory() -> int:
    """Bytes of physical memory this process has held at most.

    On Linux the mark of /proc, which begins anew with a program; getrusage's remembers the one that started it. Its
    unit is the kilobyte, except on macOS.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

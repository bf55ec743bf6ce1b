"""The machine at hand: its cores, and what this process has taken of its memory."""

from __future__ import annotations

import os
import resource
import sys


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """Bytes of physical memory this process has held at most; the kernel reports kilobytes, except on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

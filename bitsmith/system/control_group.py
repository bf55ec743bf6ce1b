"""Limits of this process's control group (containers, systemd, batch systems), in both versions of Linux's interface.

Source: the kernel's documentation, admin-guide/cgroup-v2 and cgroup-v1 (memory, cpu). A limit of a parent holds too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # version 1 writes a number near 2^63 where there is no limit


def memory_room(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Bytes that the group may still use; None without a limit.

    Page cache that the kernel can drop counts as free: it is part of the group's usage, but goes when memory is needed.
    """
    rooms = []
    for folder in _folders(root, own, "memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < _UNLIMITED:
            rooms.append(max(limit - max(used - _droppable(folder / "memory.stat"), 0), 0))
    return min(rooms, default=None)


def processors(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Number of processors that the group's quota of time is worth, rounded up; None without a quota."""
    shares = []
    for folder in _folders(root, own, "cpu"):
        quota, period, *_ = (
            *_words(folder / "cpu.max"),
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
            *("", ""),
        )
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            shares.append(math.ceil(int(quota) / int(period)))
    return min(shares, default=None)


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The group's folder and those of its parents; inside a container, where its path may not be visible, the root."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    starts = {root: "", root / controller: ""}  # version 2, and version 1
    for line in lines:
        _, names, path = (*line.split(":", 2), "", "")[:3]
        if not names:
            starts[root] = path
        elif controller in names.split(","):
            starts[root / controller] = path
    for start, path in starts.items():
        folder = start / path.lstrip("/")
        while folder != start and start in folder.parents:
            yield folder
            folder = folder.parent
        yield start


def _droppable(path: Path) -> int:
    """Bytes of page cache that can be dropped: files that are not in active use."""
    try:
        rows = dict(line.split(" ", 1) for line in path.read_text(encoding="ascii").splitlines() if " " in line)
        return int(rows.get("total_inactive_file", rows.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0


def _number(*paths: Path) -> int | None:
    """The number in the first of these files that has one."""
    for path in paths:
        words = _words(path)
        if words and words[0].isdigit():
            return int(words[0])
    return None


def _words(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return ()

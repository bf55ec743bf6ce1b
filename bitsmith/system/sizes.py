"""Sizes in bytes and durations, in the notation of users."""

from __future__ import annotations

import re

from bitsmith.errors import UsageError

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12}
_UNITS |= {"tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_size(text: str) -> int:
    """Bytes of "2GB" (10^9), "512MiB" (2^20), "1000000". Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"{text!r} is not a size; expected for instance 2GB, 512MiB or a number of bytes.")
    size = int(min(float(match[1]) * _UNITS[match[2].lower()], 1e24))
    if size <= 0:
        raise UsageError(f"{text!r}: a size must be above zero.")
    return size


def human_bytes(count: float) -> str:
    """Bytes in powers of ten: "5.37 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def human_seconds(seconds: float) -> str:
    """A duration: "0.4 s", "75 s", "12 min", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def counted(count: int, what: str) -> str:
    """A number of things: "1 step", "1,200 steps"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"

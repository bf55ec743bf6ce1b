"""What the processor of this machine is called."""

from __future__ import annotations

import platform
import sys
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FIELDS = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")


@cache
def processor_name() -> str:
    """The name and the model numbers of the processor; the name of its architecture where the system tells no more."""
    if sys.platform == "darwin":
        return _sysctl() or platform.machine()
    try:
        return name_in(_CPUINFO.read_text(errors="replace")) or platform.machine()
    except OSError:
        return platform.machine()


def name_in(cpuinfo: str) -> str:
    """The name of the first processor in the text of /proc/cpuinfo; "" if it names none."""
    first: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        field, colon, value = line.partition(":")
        if not line.strip() and first:
            break
        if colon and field.strip() in _FIELDS:
            first.setdefault(field.strip(), value.strip())
    name = first.pop("model name", "")
    numbers = ", ".join(f"{field} {value}" for field, value in first.items())
    return f"{name} ({numbers})" if name and numbers else name or numbers


def _sysctl() -> str:
    import subprocess

    try:
        words = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""

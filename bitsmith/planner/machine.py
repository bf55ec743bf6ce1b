"""`--device this`: this machine's cards as the driver reports them, its free memory and its bandwidth."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

from bitsmith.errors import UsageError
from bitsmith.evaluation.bandwidth import read_bandwidth
from bitsmith.planner.devices import Device, find_device
from bitsmith.system.machine import cores
from bitsmith.system.memory import available_memory

_BUFFER, _PASSES = 256 << 20, 7  # a fifth of a second; each way of reading once


def this_machine() -> list[tuple[Device, int]]:
    """This machine's NVIDIA cards with their number, and its processor. Its memory is what is free without swapping."""
    return [*Counter(_cards()).items(), (_processor(), 1)]


def _processor() -> Device:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = available_memory() or total
    count = cores()
    return Device(
        name="this",
        title=f"this machine: {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {count} core{'' if count == 1 else 's'}",
        kind="cpu",
        memory=free,
        bandwidth=read_bandwidth(count, size=_BUFFER, passes=_PASSES),
        matrix_types=frozenset(),
        source="measured",
    )


def _cards() -> list[Device]:
    """The cards that nvidia-smi lists. Empty if nvidia-smi is not installed or fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.rpartition(",") for line in done.stdout.splitlines()]
    return [_card(title.strip(), int(size)) for title, comma, size in lines if comma and size.strip().isdecimal()]


def _card(title: str, mebibytes: int) -> Device:
    """The card's row in DEVICES, with the memory that the driver reports. An unknown card gets no bandwidth."""
    for name in (title, f"{title} {round(mebibytes / 1024)}GB"):
        try:
            return replace(find_device(name), memory=mebibytes << 20)
        except UsageError:
            continue
    return Device(title.lower(), title, "cuda", mebibytes << 20, 0.0, frozenset(), source="nvidia-smi")

"""`--device this`: the machine at hand, its cards as the driver reports them, its free memory and its bandwidth."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace

from bitsmith.errors import UsageError
from bitsmith.evaluation.bandwidth import read_bandwidth
from bitsmith.machine import cores
from bitsmith.model.memory import available_memory
from bitsmith.planner.devices import Device, find_device

_BUFFER, _PASSES = 64 << 20, 4  # a fifth of a second


def this_machine() -> list[Device]:
    """Its NVIDIA cards, and its processor with the memory that can be taken without swapping."""
    return [*_cards(), _processor()]


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
        native=frozenset(),
        source="measured",
    )


def _cards() -> list[Device]:
    """What nvidia-smi lists; nothing without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [_card(*line.rsplit(",", 1)) for line in done.stdout.splitlines() if "," in line]


def _card(title: str, mebibytes: str) -> Device:
    try:
        known = find_device(title.strip())
    except UsageError:
        known = Device(title.strip().lower(), title.strip(), "cuda", 0, 0.0, frozenset(), source="nvidia-smi")
    digits = mebibytes.strip()
    return replace(known, memory=int(digits) << 20) if digits.isdigit() else known

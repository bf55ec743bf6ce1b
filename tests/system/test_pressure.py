"""Limits of memory, and errors that mean there was none."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from bitsmith.system.pressure import is_shortage, memory_now, rooms


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_shortages(error: Exception) -> None:
    assert is_shortage(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), OSError(errno.ENOSPC, "No space left"), ValueError("memory")]
)
def test_other_errors(error: Exception) -> None:
    assert not is_shortage(error)


def test_what_torch_says_is_a_shortage() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_shortage(failed.value)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_this_process() -> None:
    now = memory_now()
    assert 0 < now.resident <= now.peak <= now.address


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v")
def test_rooms_name_the_limit() -> None:
    assert not any(room.address for room in rooms())
    code = (
        "import resource; from bitsmith.system.pressure import memory_now, rooms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (memory_now().address + (64 << 20),) * 2)\n"
        "room = next(room for room in rooms() if room.address); print(room.nbytes >> 20, room.limit)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left, _, limit = done.stdout.strip().partition(" ")
    assert 50 <= int(left) <= 64
    assert limit == "left under ulimit -v"

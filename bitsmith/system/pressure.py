"""Memory that runs short: how much is left under each limit, and which errors mean that there was none."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from bitsmith.system.control_group import memory_room
from bitsmith.system.memory import available_memory

# Words in RuntimeErrors of torch, oneDNN and the C++ library that mean a failed allocation
_SHORT = (
    "not enough memory",
    "DefaultCPUAllocator",
    "out of memory",
    "bad_alloc",
    "can't allocate memory",
    "could not create a primitive",
    "could not create a memory",
    "can't start new thread",
)


@dataclass(frozen=True)
class Room:
    """Memory that this process can still take under one limit.

    nbytes: bytes
    limit: what limits it, in words
    address: whether addresses count, used or not (`ulimit -v`), and not the memory behind them
    """

    nbytes: int
    limit: str
    address: bool = False


def rooms() -> tuple[Room, ...]:
    """The memory left under every limit that this system tells: free memory or a control group's, and `ulimit -v`."""
    found = []
    free = available_memory()
    if free is not None:
        group = memory_room()
        inside = group is not None and group <= free
        found.append(Room(free, "left in the control group" if inside else "free"))
    limit = _address_limit()
    if limit is not None:
        found.append(Room(max(limit - memory_now().address, 0), "left under ulimit -v", address=True))
    return tuple(found)


@dataclass(frozen=True)
class MemoryNow:
    """What this process takes now, in bytes: in memory, the most so far in memory, and addresses."""

    resident: int
    peak: int
    address: int


def memory_now() -> MemoryNow:
    """Memory of this process; zeros where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return MemoryNow(0, 0, 0)
    sizes = {line.split(":")[0]: line.split(":")[1].split() for line in lines if line.startswith("Vm")}
    resident, peak, address = (1024 * int(sizes.get(name, ["0"])[0]) for name in ("VmRSS", "VmHWM", "VmSize"))
    return MemoryNow(resident, peak, address)


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory could not be had: of numpy, torch on any device, the core or the system."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _SHORT)


def _address_limit() -> int | None:
    """Bytes of addresses that this process may take; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft

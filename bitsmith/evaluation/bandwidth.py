"""Measures how fast this machine reads its memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bitsmith.system.core import core
from bitsmith.system.memory import available_memory

BUFFER = 256 << 20  # bytes
_LEAST, _MOST = 1 << 20, 1 << 30
PASSES = 14  # twice each way of reading that the core knows


def buffer_for(token_bytes: int) -> int:
    """The buffer for what a decoder reads for each token: as large, so that as much of it stays in the caches.

    At most 1 GiB, and a quarter of the memory that is free.
    """
    free = available_memory() or _MOST * 4
    return max(_LEAST, min(token_bytes, _MOST, free // 4))


def read_bandwidth(threads: int, *, size: int = BUFFER, passes: int = PASSES) -> float:
    """Bytes a second that `threads` threads together read from a buffer of `size` bytes. The best pass counts.

    Without the C++ core, numpy sums the buffer. That may be slower than the memory.
    """
    module = core()
    return _numpy_bandwidth(threads, size, passes) if module is None else module.read_bandwidth(threads, size, passes)


def _numpy_bandwidth(threads: int, size: int, passes: int) -> float:
    parts = np.array_split(np.ones(max(size // 8, threads), np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(passes):
            started = time.perf_counter()
            read = sum(pool.map(lambda part: int(part.sum()), parts))  # all words are 1: the sum is their number
            best = max(best, 8 * read / (time.perf_counter() - started))
    return best

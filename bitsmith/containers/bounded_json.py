"""JSON from files that are not trusted: what it takes in memory is bounded before it is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import FileError

DEEPEST = 100  # objects and lists in each other; what reads the values may recurse
MOST_MEMORY = 640 << 20  # bytes of Python's values
_PIECE = 1 << 20
_STEPS = np.zeros(256, np.int8)  # of the depth, for each character
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
# bytes that Python takes, at most, for each occurrence: {} with entries, [] with room, numbers, half of a string, keys
_COSTS = ((b"{", 240), (b"[", 88), (b",", 64), (b'"', 28), (b":", 56))


def parse_json(data: bytes, origin: str | Path, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text in UTF-8.

    origin: the file and place, for errors
    pairs: makes the value of an object from its entries; None: a dict
    Raises FileError if it is not JSON, nests deeper than DEEPEST, or would take more memory than MOST_MEMORY.
    """
    if memory_of(data) > MOST_MEMORY:
        raise FileError(
            f"{origin}: {len(data):,} bytes of JSON with too many values: they would take more than "
            f"{MOST_MEMORY >> 20} MB of memory; download it again."
        )
    if depth_of(data) > DEEPEST:
        raise FileError(f"{origin}: expected JSON in UTF-8, found a text that nests too deeply; download it again.")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except ValueError as error:
        raise FileError(
            f"{origin}: expected JSON in UTF-8, found something else ({error}); download it again."
        ) from None


def memory_of(data: bytes) -> int:
    """An upper bound of the memory that the values of a JSON text take, in bytes."""
    width = 2 if data.isascii() else 8  # the text and its strings, at one to four bytes a character
    return width * len(data) + sum(cost * data.count(mark) for mark, cost in _COSTS)


def depth_of(data: bytes) -> int:
    """How many objects and lists lie in each other, at most. Of a text that is not JSON, some number."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    deepest = depth = quotes = 0
    for start in range(0, len(plain), _PIECE):
        piece = np.frombuffer(plain, np.uint8, min(_PIECE, len(plain) - start), start)
        within = quotes + np.cumsum(piece == ord('"'), dtype=np.int32)
        steps = _STEPS[piece] * (1 - within % 2)
        depths = depth + np.cumsum(steps, dtype=np.int32)
        deepest = max(deepest, int(depths.max()))
        depth, quotes = int(depths[-1]), int(within[-1]) % 2
    return deepest

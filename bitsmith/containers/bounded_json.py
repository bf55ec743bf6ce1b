"""JSON from files that are not trusted: what it takes in memory is bounded before it is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitsmith.errors import FileError

MOST_MEMORY = 640 << 20  # bytes of Python's values
# bytes that Python takes, at most, for each occurrence: {} with entries, [] with room, numbers, half of a string, keys
_COSTS = ((b"{", 240), (b"[", 88), (b",", 64), (b'"', 28), (b":", 56))


def parse_json(data: bytes, origin: str | Path, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text in UTF-8.

    origin: the file and place, for errors
    pairs: makes the value of an object from its entries; None: a dict
    Raises FileError if it is not JSON, nests too deeply, or would take more memory than MOST_MEMORY.
    """
    if memory_of(data) > MOST_MEMORY:
        raise FileError(
            f"{origin}: {len(data):,} bytes of JSON with too many values: they would take more than "
            f"{MOST_MEMORY >> 20} MB of memory; download it again."
        )
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise FileError(
            f"{origin}: expected JSON in UTF-8, found something else ({reason}); download it again."
        ) from None


def memory_of(data: bytes) -> int:
    """An upper bound of the memory that the values of a JSON text take, in bytes."""
    width = 2 if data.isascii() else 8  # the text and its strings, at one to four bytes a character
    return width * len(data) + sum(cost * data.count(mark) for mark, cost in _COSTS)

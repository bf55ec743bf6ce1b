"""The ledger of a work folder: what is done, one line each, added at the end of one file.

Each line begins with the hash of the rest, so that a line which was torn by a kill ends the ledger where it stands.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitsmith.containers.model_files import open_regular

_DIGITS = 16  # of the hash


class WorkLedger:
    """The lines of a ledger.

    lines: plain objects, in order
    damaged: whether the end of the file could not be read; it is cut off before a line is added
    """

    def __init__(self, path: Path) -> None:
        """Read the lines that are whole. Raises OSError."""
        self.path = path
        self.lines: list[dict[str, Any]] = []
        self._end = 0
        size = 0
        try:
            with open(open_regular(path), "rb") as file:
                for line in file:
                    size += len(line)
                    value = _value(line)
                    if value is None:
                        break
                    self.lines.append(value)
                    self._end += len(line)
        except FileNotFoundError:
            pass
        self.damaged = size != self._end

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Add lines, and wait until they are on the disk. Raises OSError; the lines before stay as they are."""
        new = list(lines)
        data = b"".join(map(_line, new))
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            os.truncate(handle, self._end)
            at = self._end
            while data:
                written = os.pwrite(handle, data, at)
                data, at = data[written:], at + written
            os.fsync(handle)
        finally:
            os.close(handle)
        self._end, self.damaged = at, False
        self.lines += new


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return _hash(text) + b" " + text + b"\n"


def _value(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if the line is not whole."""
    mark, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or mark != _hash(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGITS].encode()

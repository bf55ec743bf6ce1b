"""The key of a run's work: everything that its bytes depend on. Work with another key is never used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bitsmith.errors import FileError
from bitsmith.system.core import core
from bitsmith.version import __version__

_HEAD = 1 << 20  # bytes of a file that are hashed
_DIGITS = 24
KEY = re.compile(f"[0-9a-f]{{{_DIGITS}}}")  # what keys look like
_PACKAGES = ("numpy", "torch")  # whose arithmetic decides bytes


def work_key(files: Iterable[str | Path], recipe: Mapping[str, Any]) -> str:
    """A name for the work of a run: the same for the same files, the same recipe and the same program.

    files: everything that the run reads. Hashing all of a model would take as long as a plain run, so a file counts
        by its name, its size, the time of its last change, and the hash of its first 2^20 bytes, where headers are
    recipe: plain values for JSON
    Raises FileError if a file cannot be read.
    """
    content = {"files": sorted(map(_signature, files)), "recipe": recipe, "program": program()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def program() -> dict[str, Any]:
    """What computes: versions, and the build and the instruction set of the core, which decide the last bits."""
    found: dict[str, Any] = {"bitsmith": __version__, "python": list(sys.version_info[:2])}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    module = core()
    if module is not None:
        isa = str(module.isa()) if hasattr(module, "isa") else ""
        found["core"] = [_content_hash(str(module.__file__)), os.environ.get("BITSMITH_ISA", ""), isa]
    return found


@lru_cache(maxsize=4)
def _content_hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def head_hash(path: Path) -> str:
    """The hash of the first 2^20 bytes of a file, where headers are. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(_HEAD)).hexdigest()


def _signature(path: str | Path) -> list[Any]:
    try:
        with open(path, "rb") as file:
            found, head = os.fstat(file.fileno()), file.read(_HEAD)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
    return [Path(path).name, found.st_size, found.st_mtime_ns, hashlib.sha256(head).hexdigest()]

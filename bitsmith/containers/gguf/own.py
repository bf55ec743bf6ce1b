"""Whether bitsmith wrote a GGUF file."""

from __future__ import annotations

import os
from pathlib import Path

from bitsmith.containers.gguf.header import read_header
from bitsmith.containers.gguf.split import split_name, split_parts
from bitsmith.containers.manifest import is_manifest_key
from bitsmith.errors import BitsmithError


def is_own(path: Path) -> bool:
    """Whether bitsmith wrote a GGUF file, alone or as a part of a split set; False for a file that cannot be read."""
    parts = split_parts(path.name)
    first = path if parts is None else path.with_name(split_name(parts[0], 1, parts[2]))
    return any(_has_manifest(each) for each in dict.fromkeys((path, first)))


def _has_manifest(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return any(map(is_manifest_key, read_header(descriptor, path).keys))
        finally:
            os.close(descriptor)
    except (OSError, BitsmithError):
        return False

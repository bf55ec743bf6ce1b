"""Reads the header of a safetensors file. Every offset and size is checked before data is read.

Format (github.com/huggingface/safetensors): 8 bytes, the header's length N, little-endian; N bytes of JSON, an object
from names to {"dtype", "shape", "data_offsets": [begin, end]} and an optional "__metadata__" of strings, or null; then
data, which the entries cover without gaps or overlaps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitsmith.containers.bounded_json import parse_json
from bitsmith.containers.model_files import open_regular
from bitsmith.errors import FileError
from bitsmith.system.number_types import NumberTypes

HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors package
_LARGEST_DIMENSION = 1 << 48
_MOST_ENTRIES = 1 << 18  # as many as a GGUF file may have here; the largest known file has 90,000
_FIELDS = ("dtype", "shape", "data_offsets")

DTYPES = NumberTypes(
    {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "?",
    }
)


FileState = tuple[int, int]  # size in bytes, time of the last change in seconds


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One entry: `offset` counts from the start of the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    file: state of the file, which later reads compare
    entries: in the order of their data
    """

    path: Path
    file: FileState
    entries: Mapping[str, HeaderEntry]
    metadata: Mapping[str, str]


def file_state(handle: int) -> FileState:
    """What tells an open file from a later one of its name.

    Some network file systems give a file another inode each time, and cut fractions of seconds off later.
    """
    found = os.fstat(handle)
    return found.st_size, int(found.st_mtime)


def dtype_name(dtype: np.dtype) -> str:
    """The safetensors name of a numpy dtype."""
    return DTYPES.name_of(np.dtype(dtype))


class _Fields(NamedTuple):
    """What an entry says of itself, not checked yet."""

    dtype: Any
    shape: Any
    offsets: Any


def read_header(path: Path) -> Header:
    """Read and check the header of `path`. Raises FileError naming the file and the entry that is wrong."""
    try:
        with open(open_regular(path, "safetensors file"), "rb") as file:
            state = file_state(file.fileno())
            size = state[0]
            length = _header_length(path, size, file.read(8))
            text = file.read(length)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}; check its name and permissions") from error
    content = _parse(path, text)
    del text
    metadata = _metadata(path, content.pop("__metadata__", None))
    if len(content) > _MOST_ENTRIES:
        raise FileError(
            f"{path} has {len(content):,} entries, more than {_MOST_ENTRIES:,}; split the model into several files"
        )
    entries = [_entry(path, name, value, 8 + length) for name, value in content.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_cover(path, entries, 8 + length, size)
    return Header(path, state, {entry.name: entry for entry in entries}, metadata)


def _header_length(path: Path, size: int, first: bytes) -> int:
    if len(first) < 8:
        raise FileError(f"{path} has {size} bytes, too few for a safetensors file; download or write it again")
    length = int.from_bytes(first, "little")
    if length > HEADER_LIMIT or length > size - 8 or length < 2:
        raise FileError(
            f"{path} says its header has {length} bytes, but the file has {size} bytes and headers have 2 to "
            f"{HEADER_LIMIT}; it is not a safetensors file, or truncated or damaged: download or write it again"
        )
    return length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise FileError(f"{path} has two entries named {twice!r} in its header; it is damaged: write it again")
        return _Fields(*map(found.get, _FIELDS)) if found.keys() >= set(_FIELDS) else found

    if not text.startswith(b"{"):
        raise FileError(f"{path} is not a safetensors file: its header begins with {text[:8]!r}, not with '{{'")
    content = parse_json(text, f"{path}: its header", pairs=once)
    if not isinstance(content, dict):
        raise FileError(f"{path}: the header is JSON but not an object; the file is damaged: download it again")
    return content


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:  # as the safetensors package does
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FileError(f"{path}: __metadata__ must map strings to strings; the file is damaged: write it again")
    return value


def _entry(path: Path, name: str, value: object, start: int) -> HeaderEntry:
    """Check one entry on its own."""

    def wrong(what: str) -> FileError:
        return FileError(f"{path}: entry {name!r}: {what}; the file is damaged: download or write it again")

    if not isinstance(value, _Fields):
        raise wrong("expected dtype, shape and data_offsets")
    dtype, shape, offsets = value
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FileError(f"{path}: entry {name!r} has the unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not _sizes(shape) or any(size > _LARGEST_DIMENSION for size in shape):
        raise wrong(f"shape must be a list of sizes, not {str(shape)[:80]}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"data_offsets must be [begin, end], not {str(offsets)[:80]}")
    expected = math.prod(shape) * DTYPES.width(dtype)
    if offsets[1] - offsets[0] != expected:
        raise wrong(f"{dtype} of shape {shape} takes {expected} bytes, data_offsets give {offsets[1] - offsets[0]}")
    return HeaderEntry(name, dtype, tuple(shape), start + offsets[0], expected)


def _sizes(value: object) -> bool:
    """Whether `value` is a list of integers >= 0. True and False do not count as integers."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(path: Path, entries: list[HeaderEntry], start: int, size: int) -> None:
    """Check that the sorted entries cover start..size without gaps or overlaps."""
    end, previous = start, "the header"
    for entry in entries:
        if entry.offset < end:
            raise FileError(
                f"{path}: the data of {entry.name!r} begins {end - entry.offset} bytes before the end of {previous}; "
                "entries must not overlap: the file is damaged, download or write it again"
            )
        if entry.offset > end:
            raise FileError(
                f"{path}: {entry.offset - end} bytes before the data of {entry.name!r} belong to no entry; "
                "the file is damaged, download or write it again"
            )
        end, previous = entry.offset + entry.nbytes, repr(entry.name)
        if end > size:
            raise FileError(
                f"{path} is truncated: the data of {entry.name!r} ends at byte {end}, the file at {size}; "
                "download or write it again"
            )
    if end != size:
        raise FileError(
            f"{path}: {size - end} bytes after the data of {previous} belong to no entry; "
            "the file is damaged, download or write it again"
        )

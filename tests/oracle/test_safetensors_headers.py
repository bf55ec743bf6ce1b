"""Odd headers: what the safetensors package reads and is harmless, we read; what it refuses, we refuse."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, deserialize

from bitsmith.containers.safetensors_header import read_header
from bitsmith.errors import FileError

ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TEXT = json.dumps(ENTRY).encode()
EMPTY = {"dtype": "F32", "shape": [0, 4], "data_offsets": [8, 8]}


def _file(header: dict[str, Any] | bytes, size: int = 8, after: bytes = b"") -> bytes:
    text = (header if isinstance(header, bytes) else json.dumps(header).encode()) + after
    return struct.pack("<Q", len(text)) + text + bytes(size)


HARMLESS: dict[str, bytes] = {
    "null metadata": _file({"__metadata__": None, "a": ENTRY}),
    "empty metadata": _file({"__metadata__": {}, "a": ENTRY}),
    "no tensors": _file({}, 0),
    "only null metadata": _file({"__metadata__": None}, 0),
    "a further field of an entry": _file({"a": ENTRY | {"note": 1}}),
    "spaces after": _file({"a": ENTRY}, after=b"    "),
    "a line break after": _file({"a": ENTRY}, after=b"\n"),
    "an odd length": _file({"a": ENTRY}, after=b" "),
    "an empty tensor": _file({"a": ENTRY, "b": EMPTY}),
    "a scalar": _file({"a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}),
    "an empty name": _file({"": ENTRY}),
    "another order": _file({"b": ENTRY | {"data_offsets": [8, 16]}, "a": ENTRY}, 16),
}
DAMAGED: dict[str, bytes] = {
    "a number in metadata": _file({"__metadata__": {"x": 1}, "a": ENTRY}),
    "null in metadata": _file({"__metadata__": {"x": None}, "a": ENTRY}),
    "metadata that is a list": _file({"__metadata__": [], "a": ENTRY}),
    "no shape": _file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "a null shape": _file({"a": ENTRY | {"shape": None}}),
    "zeros after": _file({"a": ENTRY}, after=b"\0\0"),
    "two metadata": _file(b'{"__metadata__":{},"__metadata__":{},"a":' + TEXT + b"}"),
    "another spelling of a type": _file({"a": ENTRY | {"dtype": "f32"}}),
    "offsets that are floats": _file({"a": ENTRY | {"data_offsets": [0.0, 8.0]}}),
    "three offsets": _file({"a": ENTRY | {"data_offsets": [0, 8, 8]}}),
    "a gap": _file({"a": ENTRY | {"data_offsets": [4, 12]}}, 12),
    "a byte more": _file({"a": ENTRY}, 9),
}
# the package reads these; we do not: they are ambiguous, or against the format's specification
STRICTER: dict[str, bytes] = {
    "two entries of one name": _file(b'{"a":' + TEXT + b',"a":' + TEXT + b"}"),
    "a space before": _file(b' {"a":' + TEXT + b"}"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_both_read(name: str, tmp_path: Path) -> None:
    theirs = dict(deserialize(HARMLESS[name]))
    (tmp_path / "m.safetensors").write_bytes(HARMLESS[name])
    ours = read_header(tmp_path / "m.safetensors")
    assert {key: list(entry.shape) for key, entry in ours.entries.items()} == {
        key: value["shape"] for key, value in theirs.items()
    }


@pytest.mark.parametrize("name", DAMAGED)
def test_both_refuse(name: str, tmp_path: Path) -> None:
    with pytest.raises(SafetensorError):
        deserialize(DAMAGED[name])
    (tmp_path / "m.safetensors").write_bytes(DAMAGED[name])
    with pytest.raises(FileError, match=r"m\.safetensors"):
        read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", STRICTER)
def test_only_the_package_reads(name: str, tmp_path: Path) -> None:
    deserialize(STRICTER[name])
    (tmp_path / "m.safetensors").write_bytes(STRICTER[name])
    with pytest.raises(FileError, match=r"m\.safetensors"):
        read_header(tmp_path / "m.safetensors")

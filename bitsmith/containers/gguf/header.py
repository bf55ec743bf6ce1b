"""Parses a GGUF header (v2 and v3, little-endian). Every count is checked before it is used.

Source: the GGUF specification (ggml repository, docs/gguf.md). The limits below are our own.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from bitsmith.containers.gguf.metadata_values import DTYPES, GgufArray, Value, ValueType
from bitsmith.containers.gguf.types import BY_NUMBER
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.quant.tensor import TensorInfo

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

MAX_HEADER_BYTES = 128 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME_BYTES = (1 << 16) - 1  # the specification's limit for keys
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_NESTING = 8
MAX_NESTED_ARRAYS = 1 << 16
MAX_STRINGS = 1 << 21  # in all arrays; a vocabulary of 262,144 tokens has 515,000 merges

_SMALLEST_KEY = 8 + 1 + 4 + 1  # name length, name, type, value
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, dimensions, one dimension, type, offset
_FETCH = "The file is damaged or incomplete; download it again from its source"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")


@dataclass(frozen=True)
class TensorEntry:
    """A tensor and the offset of its data from the start of the file, in bytes."""

    info: TensorInfo
    offset: int


@dataclass(frozen=True)
class Header:
    """Everything in a GGUF file before its data. data_start: offset of the data section, in bytes."""

    version: int
    alignment: int
    keys: dict[str, Value]
    tensors: tuple[TensorEntry, ...]
    data_start: int


def read_header(descriptor: int, path: Path) -> Header:
    """Parse and check the header of an open file. Checks also that every tensor's data lies inside the file.

    Raises FileError if the file is damaged or contradictory, UnsupportedError for unsupported versions, byte orders
    and tensor types.
    """
    cursor = _Cursor(descriptor, path)
    version, tensor_count, key_count = _preamble(cursor)
    keys = _keys(cursor, key_count)
    alignment = _alignment(cursor, keys)
    raw = [_tensor(cursor, index) for index in range(tensor_count)]
    data_start = -(-cursor.at // alignment) * alignment
    tensors = tuple(TensorEntry(info, data_start + offset) for info, offset in raw)
    _check_places(cursor, tensors, alignment)
    return Header(version, alignment, keys, tensors, data_start)


class _Cursor:
    """Reads a file from start to end. where: what is being read, for errors"""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        self.size = os.fstat(descriptor).st_size
        self.at = 0
        self.where = "the header"
        self.nested = 0
        self.listed = 0
        self._descriptor = descriptor
        self._data = bytearray()

    def fail(self, problem: str, advice: str = _FETCH) -> NoReturn:
        raise FileError(f"{self.path}: {self.where}: {problem}. {advice}")

    def take(self, count: int) -> bytearray:
        """The next `count` bytes."""
        start = self.at
        self.at = self._ensure(start + count)
        return self._data[start : self.at]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def count(self, what: str, limit: int, smallest: int) -> int:
        """Read a 64-bit count of things that take at least `smallest` bytes each."""
        return self.checked(self.u64(), what, limit, smallest)

    def checked(self, number: int, what: str, limit: int, smallest: int) -> int:
        """Check a count that was already read."""
        if number > limit or number * smallest > self.size - self.at:
            self.fail(f"claims {number} {what}, but only {self.size - self.at} bytes follow (limit {limit})")
        return number

    def name(self, what: str) -> str:
        """A length-prefixed UTF-8 name."""
        length = self.checked(self.u64(), f"bytes of {what}", MAX_NAME_BYTES, 1)
        raw = self.take(length)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} {bytes(raw[:80])!r} is not valid UTF-8")
        if not name:
            self.fail(f"{what} is empty")
        return name

    def strings(self, number: int) -> list[str]:
        """`number` length-prefixed strings; bytes that are not UTF-8 become lone surrogates."""
        data, at, loaded, size = self._data, self.at, len(self._data), self.size
        found = []
        for _ in range(number):
            if at + 8 > loaded:
                self._ensure(at + 8)
                loaded = len(data)
            end = at + 8 + _U64.unpack_from(data, at)[0]
            if end > loaded:
                if end > size:
                    self.fail(f"a string claims {end - at - 8} bytes, but only {size - at - 8} follow")
                self._ensure(end)
                loaded = len(data)
            found.append(data[at + 8 : end].decode("utf-8", "surrogateescape"))
            at = end
        self.at = at
        return found

    def _ensure(self, end: int) -> int:
        """Read the file up to byte `end` into memory, in growing pieces."""
        loaded = len(self._data)
        if end <= loaded:
            return end
        if end > self.size:
            self.fail(f"the file ends here: {end} bytes are needed, but it has {self.size}")
        if end > MAX_HEADER_BYTES:
            self.fail(f"the header is larger than {MAX_HEADER_BYTES} bytes")
        target = min(self.size, MAX_HEADER_BYTES, max(end, 2 * loaded, 1 << 16))
        while loaded < target:
            piece = os.pread(self._descriptor, target - loaded, loaded)
            if not piece:
                self.fail(f"the file shrank to {loaded} bytes while it was read")
            self._data += piece
            loaded += len(piece)
        return end


def _preamble(cursor: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of keys."""
    magic = bytes(cursor.take(4))
    if magic != MAGIC:
        cursor.fail(f"expected the magic bytes {MAGIC!r}, found {magic!r}", "This is not a GGUF file")
    version = cursor.u32()
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(
            f"{cursor.path}: its GGUF version reads as {version:#010x}, so it was written for a big-endian machine. "
            "Convert it with gguf-py's gguf_convert_endian first"
        )
    if version not in (2, 3):
        raise UnsupportedError(
            f"{cursor.path}: expected GGUF version 2 or 3, found {version}. "
            "Make the file again from its source with a current converter"
        )
    tensors = cursor.count("tensors", MAX_TENSORS, _SMALLEST_TENSOR)
    return version, tensors, cursor.count("keys", MAX_KEYS, _SMALLEST_KEY)


def _keys(cursor: _Cursor, count: int) -> dict[str, Value]:
    keys: dict[str, Value] = {}
    for index in range(count):
        cursor.where = f"key {index + 1} of {count}"
        name = cursor.name("its name")
        cursor.where = f"key {name[:80]!r}"
        if name in keys:
            cursor.fail("is there twice")
        keys[name] = _value(cursor, cursor.u32())
    return keys


def _value(cursor: _Cursor, number: int) -> Value:
    value_type = _value_type(cursor, number)
    if value_type is ValueType.STRING:
        return Value(value_type, cursor.strings(1)[0])
    if value_type is ValueType.ARRAY:
        return Value(value_type, _array(cursor, 1))
    return Value(value_type, _numbers(cursor, value_type, 1)[0].item())


def _value_type(cursor: _Cursor, number: int) -> ValueType:
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"expected a value type from 0 to 12, found {number}")


def _array(cursor: _Cursor, depth: int) -> GgufArray:
    if depth > MAX_NESTING:
        cursor.fail(f"arrays are nested more than {MAX_NESTING} deep")
    number, length = _ARRAY_HEAD.unpack(cursor.take(_ARRAY_HEAD.size))
    item = _value_type(cursor, number)
    if item is ValueType.STRING:
        cursor.listed += cursor.checked(length, "strings", MAX_STRINGS, 8)
        if cursor.listed > MAX_STRINGS:
            cursor.fail(f"the file holds more than {MAX_STRINGS} strings in arrays")
        return GgufArray(item, tuple(cursor.strings(length)))
    if item is ValueType.ARRAY:
        cursor.nested += cursor.checked(length, "arrays", MAX_NESTED_ARRAYS, _ARRAY_HEAD.size)
        if cursor.nested > MAX_NESTED_ARRAYS:
            cursor.fail(f"the file holds more than {MAX_NESTED_ARRAYS} nested arrays")
        return GgufArray(item, tuple(_array(cursor, depth + 1) for _ in range(length)))
    width = DTYPES[item].itemsize
    return GgufArray(item, _numbers(cursor, item, cursor.checked(length, "numbers", MAX_HEADER_BYTES, width)))


def _numbers(cursor: _Cursor, item: ValueType, length: int) -> np.ndarray:
    """[length] in the item's own dtype, read-only."""
    raw = bytes(cursor.take(length * DTYPES[item].itemsize))
    if item is ValueType.BOOL and raw.translate(None, b"\x00\x01"):
        cursor.fail("expected booleans of 0 or 1, found another byte")
    return np.frombuffer(raw, DTYPES[item])


def _alignment(cursor: _Cursor, keys: dict[str, Value]) -> int:
    given = keys.get(ALIGNMENT_KEY)
    if given is None:
        return DEFAULT_ALIGNMENT
    cursor.where = f"key {ALIGNMENT_KEY!r}"
    if given.type is not ValueType.UINT32 or not isinstance(given.value, int):
        cursor.fail(f"expected a value of type uint32, found {given.type.name.lower()}")
    alignment = given.value
    if alignment < 8 or alignment > MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail(f"expected a power of two from 8 to {MAX_ALIGNMENT}, found {alignment}")
    return alignment


def _tensor(cursor: _Cursor, index: int) -> tuple[TensorInfo, int]:
    """A tensor and its offset from the start of the data section."""
    cursor.where = f"tensor {index + 1}"
    name = cursor.name("its name")
    cursor.where = f"tensor {name[:80]!r}"
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        cursor.fail(f"expected 1 to {MAX_DIMENSIONS} dimensions, found {dimensions}")
    reversed_shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    weights = 1
    for extent in reversed_shape:
        weights *= extent
    if not 0 < weights < 1 << 63:
        cursor.fail(f"its shape {tuple(reversed(reversed_shape))} holds no weights, or more than a file can")
    kind = BY_NUMBER.get(number := cursor.u32())
    if kind is None:
        raise UnsupportedError(
            f"{cursor.path}: {cursor.where} has the ggml type number {number}, which bitsmith does not know. "
            "It is a withdrawn type or a newer one; take another quantization of this model"
        )
    cols = reversed_shape[0]
    if cols % kind.block:
        cursor.fail(f"its rows of {cols} weights are not a whole number of {kind.name} blocks of {kind.block}")
    nbytes = weights // kind.block * kind.block_bytes
    return TensorInfo(name, tuple(reversed(reversed_shape)), kind.name, nbytes), cursor.u64()


def _check_places(cursor: _Cursor, tensors: tuple[TensorEntry, ...], alignment: int) -> None:
    """Check that names are unique, and that data is aligned, inside the file, and without overlaps."""
    names: set[str] = set()
    for entry in tensors:
        name = entry.info.name
        cursor.where = f"tensor {name[:80]!r}"
        if name in names:
            cursor.fail("is there twice")
        names.add(name)
        if entry.offset % alignment:
            cursor.fail(f"expected its data at a multiple of {alignment} bytes, found it at {entry.offset}")
        if entry.offset + entry.info.nbytes > cursor.size:
            cursor.fail(
                f"its {entry.info.nbytes} bytes at offset {entry.offset} end past the file's {cursor.size} bytes"
            )
    end, before = 0, ""
    for entry in sorted(tensors, key=lambda entry: entry.offset):
        if entry.offset < end:
            cursor.where = f"tensor {entry.info.name[:80]!r}"
            cursor.fail(f"its data at offset {entry.offset} overlaps that of tensor {before[:80]!r}")
        end, before = entry.offset + entry.info.nbytes, entry.info.name
    _check_reused_number(cursor, tensors, alignment)


def _check_reused_number(cursor: _Cursor, tensors: tuple[TensorEntry, ...], alignment: int) -> None:
    """Check that Q2_0 has blocks of 64: older files of other programs use its number for larger tensors.

    Smaller ones overlap the next tensor, or end past the file.
    """
    starts = sorted([*(entry.offset for entry in tensors), cursor.size])
    for entry in tensors:
        if entry.info.layout != "q2_0":
            continue
        room = starts[bisect_right(starts, entry.offset)] - entry.offset
        if room >= entry.info.nbytes + alignment:
            cursor.where = f"tensor {entry.info.name[:80]!r}"
            cursor.fail(
                f"expected {entry.info.nbytes} bytes of Q2_0 in blocks of 64, found {room}: number 42 of ggml's types "
                "meant another layout in older programs; take another quantization of this model"
            )

"""State files: named arrays and plain values in one file, which is there whole or not at all, and is never trusted.

A state file is written under another name, flushed to the disk, and renamed. Each array has a SHA-256 in the header,
and the header has one at the end, so that a file that is torn or damaged is found when it is opened or read.

    magic (16 bytes), arrays, header (JSON), its length (8 bytes, little endian), SHA-256 of both (32 bytes)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bitsmith.containers.model_files import open_regular
from bitsmith.containers.renames import sync
from bitsmith.system.number_types import number_type

_MAGIC = b"bitsmith work 2\n"
_BUFFER = 1 << 20
_LARGEST_HEADER = 1 << 30
_END = 8 + 32  # bytes behind the header
_DTYPES = ("uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "bfloat16", "float8_e4m3fn")


class DamagedError(Exception):
    """A state file is not as it was written. The message says what is wrong, without the file's name."""


@dataclass(frozen=True)
class Streamed:
    """An array that is written in pieces, so that it need not be in memory as a whole.

    pieces: gives its rows in order: arrays of `dtype` [n, *shape[1:]]
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


Arrays = Mapping[str, np.ndarray | Streamed]


def write_state(path: Path, values: Mapping[str, Any], arrays: Arrays, *, durable: bool = True) -> None:
    """Write a state file; once it has its name, it is whole and on the disk. Raises OSError.

    values: plain values for JSON
    durable: whether to wait for the disk; without it, a file may be torn after a power cut, which its hashes tell
    """
    temporary = path.with_name(f"{path.name}.part")
    places, offset = {}, len(_MAGIC)
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC)
            for name, array in arrays.items():
                digest = hashlib.sha256()
                for data in _pieces(name, array):
                    digest.update(data)
                    file.write(data)
                hashed = digest.hexdigest()
                shape = list(array.shape)
                places[name] = {"dtype": str(array.dtype), "shape": shape, "offset": offset, "sha256": hashed}
                offset += array.nbytes
            header = json.dumps({"values": values, "arrays": places}).encode()
            header += len(header).to_bytes(8, "little")
            file.write(header + hashlib.sha256(header).digest())
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def state_bytes(arrays: Arrays) -> int:
    """About how many bytes a state file with these arrays takes, without its header."""
    return sum(array.nbytes for array in arrays.values())


def dtype_of(name: str) -> np.dtype:
    """The type of a name in `_DTYPES`. Raises TypeError for others."""
    return number_type(name)


def _pieces(name: str, array: np.ndarray | Streamed) -> Iterator[memoryview]:
    if str(array.dtype) not in _DTYPES:
        raise ValueError(f"{name}: {array.dtype} is not a type of state files.")
    for piece in array.pieces() if isinstance(array, Streamed) else (array,):
        yield np.ascontiguousarray(piece, array.dtype).reshape(-1).view(np.uint8).data


class State:
    """An open state file. What is read from it has its hash.

    values: its plain values
    """

    def __init__(self, path: Path, *, lazily: bool = False) -> None:
        """Open and check a file. Raises FileNotFoundError; DamagedError if it is not whole; OSError.

        lazily: check each array when it is first read, which raises DamagedError then
        """
        self._handle = open_regular(path)
        self._checked: set[str] = set()
        try:
            header = self._header()
            self.values: dict[str, Any] = header["values"]
            self._places: dict[str, Any] = header["arrays"]
            if not lazily:
                self.check()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            os.close(self._handle)
            raise DamagedError("its header cannot be read") from error
        except BaseException:
            os.close(self._handle)
            raise

    def check(self) -> None:
        """Check the arrays that were not checked yet. Raises DamagedError."""
        for name in self._places:
            self._check(name)

    def _check(self, name: str) -> None:
        if name not in self._checked:
            digest = hashlib.sha256()
            for data in self.pieces(name):
                digest.update(data)
            self._compare(name, digest.hexdigest())

    def _compare(self, name: str, found: str) -> None:
        if found != self.sha256(name):
            raise DamagedError("its content does not have its hash")
        self._checked.add(name)

    def _header(self) -> dict[str, Any]:
        size = os.fstat(self._handle).st_size
        if size < len(_MAGIC) + _END or self._bytes(0, len(_MAGIC)) != _MAGIC:
            raise DamagedError("it is cut short, or of another version")
        end = self._bytes(size - _END, _END)
        length = int.from_bytes(end[:8], "little")
        start = size - _END - length
        if length > _LARGEST_HEADER or start < len(_MAGIC):
            raise DamagedError("it is cut short, or of another version")
        header = self._bytes(start, length)
        if hashlib.sha256(header + end[:8]).digest() != end[8:]:
            raise DamagedError("its content does not have its hash")
        found: dict[str, Any] = json.loads(header)
        return found

    def _bytes(self, at: int, count: int) -> bytes:
        found = b""
        while len(found) < count:
            data = os.pread(self._handle, count - len(found), at + len(found))
            if not data:
                raise DamagedError("it is cut short")
            found += data
        return found

    def __contains__(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return name in self._places

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all arrays."""
        return tuple(self._places)

    def array(self, name: str) -> np.ndarray:
        """An array, in memory of its own. Raises KeyError."""
        shape = tuple(self._places[name]["shape"])
        found = (self._rows(name, 0, shape[0]) if shape else self._rows(name, 0, 1)).reshape(shape)
        if name not in self._checked:
            self._compare(name, hashlib.sha256(found.reshape(-1).view(np.uint8).data).hexdigest())
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array. Raises KeyError."""
        return tuple(self._places[name]["shape"])

    def dtype(self, name: str) -> np.dtype:
        """The type of an array's values. Raises KeyError."""
        return dtype_of(self._places[name]["dtype"])

    def sha256(self, name: str) -> str:
        """The hash that the bytes of an array should have, in hexadecimal. Raises KeyError."""
        return str(self._places[name]["sha256"])

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of an array in order, each piece until the next; whoever reads them compares `sha256`."""
        place = self._places[name]
        left = int(np.prod(place["shape"], dtype=np.int64)) * dtype_of(place["dtype"]).itemsize
        buffer, at = memoryview(bytearray(min(left, _BUFFER))), int(place["offset"])
        while left:
            got = os.preadv(self._handle, [buffer[:left]], at)
            if not got:
                raise DamagedError("it is cut short")
            yield buffer[:got]
            at, left = at + got, left - got

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an array: [stop - start, *shape[1:]]. Raises KeyError."""
        self._check(name)
        return self._rows(name, start, stop)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        place = self._places[name]
        dtype, inner = dtype_of(place["dtype"]), tuple(place["shape"][1:])
        row = int(np.prod(inner, dtype=np.int64)) * dtype.itemsize
        found = np.empty((stop - start, *inner), dtype)
        buffer, at = found.reshape(-1).view(np.uint8).data, int(place["offset"]) + start * row
        while buffer:
            got = os.preadv(self._handle, [buffer], at)
            if not got:
                raise DamagedError("it is cut short")
            buffer, at = buffer[got:], at + got
        return found

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""State files: named arrays and plain values in one file, which is there whole or not at all, and is never trusted.

A state file is written under another name, flushed to the disk, and renamed. It ends with the SHA-256 of everything
before, so that a file that is torn or damaged is found when it is opened.

    magic (16 bytes), length of the header (8 bytes, little endian), header (JSON), arrays, SHA-256 (32 bytes)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np

from bitsmith.containers.model_files import open_regular
from bitsmith.containers.renames import sync

_MAGIC = b"bitsmith work 1\n"
_BUFFER = 1 << 20
_LARGEST_HEADER = 1 << 30
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
    durable: whether to wait for the disk; without it, a file may be torn after a power cut, which its hash tells
    """
    temporary = path.with_name(f"{path.name}.part")
    places, offset = {}, 0
    for name, array in arrays.items():
        places[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    header = json.dumps({"values": values, "arrays": places}).encode()
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for data in chain((_MAGIC, len(header).to_bytes(8, "little"), header), _pieces(arrays)):
                digest.update(data)
                file.write(data)
            file.write(digest.digest())
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
    found: np.dtype = np.dtype(vars(ml_dtypes).get(name, name))
    return found


def _pieces(arrays: Arrays) -> Iterator[bytes]:
    for name, array in arrays.items():
        if str(array.dtype) not in _DTYPES:
            raise ValueError(f"{name}: {array.dtype} is not a type of state files.")
        for piece in array.pieces() if isinstance(array, Streamed) else (array,):
            yield np.ascontiguousarray(piece, array.dtype).reshape(-1).view(np.uint8).data  # type: ignore[misc]


class State:
    """An open state file whose hash was checked.

    values: its plain values
    """

    def __init__(self, path: Path) -> None:
        """Open and check a file. Raises FileNotFoundError; DamagedError if it is not whole; OSError."""
        self._handle = open_regular(path)
        try:
            header, self._first = self._checked()
            self.values: dict[str, Any] = header["values"]
            self._places: dict[str, Any] = header["arrays"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            os.close(self._handle)
            raise DamagedError("its header cannot be read") from error
        except BaseException:
            os.close(self._handle)
            raise

    def _checked(self) -> tuple[dict[str, Any], int]:
        """The header, and the place of the first array."""
        size = os.fstat(self._handle).st_size
        start = self._bytes(0, min(size, len(_MAGIC) + 8))
        length = int.from_bytes(start[len(_MAGIC) :], "little")
        first = len(_MAGIC) + 8 + length
        if start[: len(_MAGIC)] != _MAGIC or length > _LARGEST_HEADER or first + 32 > size:
            raise DamagedError("it is cut short, or of another version")
        digest, at = hashlib.sha256(), 0
        while at < size - 32:
            data = self._bytes(at, min(_BUFFER, size - 32 - at))
            digest.update(data)
            at += len(data)
        if digest.digest() != self._bytes(size - 32, 32):
            raise DamagedError("its content does not have its hash")
        return json.loads(self._bytes(len(_MAGIC) + 8, length)), first

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
        return self.rows(name, 0, shape[0]).reshape(shape) if shape else self.rows(name, 0, 1).reshape(())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array. Raises KeyError."""
        return tuple(self._places[name]["shape"])

    def dtype(self, name: str) -> np.dtype:
        """The type of an array's values. Raises KeyError."""
        return dtype_of(self._places[name]["dtype"])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an array: [stop - start, *shape[1:]]. Raises KeyError."""
        place = self._places[name]
        dtype, inner = dtype_of(place["dtype"]), tuple(place["shape"][1:])
        row = int(np.prod(inner, dtype=np.int64)) * dtype.itemsize
        found = np.empty((stop - start, *inner), dtype)
        buffer, at = found.reshape(-1).view(np.uint8).data, self._first + place["offset"] + start * row
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

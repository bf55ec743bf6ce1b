"""GgufSource: a GGUF file, or all files of a split set, opened for reading."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from bitsmith.containers.base import Extent
from bitsmith.containers.floats import NUMBERS, decode_numbers
from bitsmith.containers.gguf.header import Header, read_header
from bitsmith.containers.gguf.metadata_values import Value, ValueType
from bitsmith.containers.gguf.split import (
    SPLIT_COUNT,
    SPLIT_NO,
    SPLIT_PREFIX,
    SPLIT_TENSORS,
    split_name,
    split_parts,
    split_prefix,
)
from bitsmith.containers.gguf.types import TYPES
from bitsmith.containers.manifest import SET_KEY, check_one_set
from bitsmith.containers.model_files import open_regular
from bitsmith.errors import FileError, UsageError
from bitsmith.quant.tensor import PackedTensor, QuantTensor, TensorInfo

_LARGEST_READ = 1 << 30  # one system call moves less than 2 GiB


@dataclass(frozen=True)
class _Part:
    path: Path
    descriptor: int
    header: Header


class GgufSource:
    """A GGUF file opened for reading (v2, v3, little-endian); any file of a split set opens the whole set.

    The files stay open and are not mapped. Data is read on demand with positioned reads, from any thread.
    `close`, a `with` block, or dropping the last reference closes them.

    keys: typed values of the first file, without the `split.*` keys, in file order
    metadata: the same as plain Python values; number arrays are numpy vectors, other arrays lists
    """

    def __init__(self, path: str | Path) -> None:
        """Open and check `path` and the other files of its set.

        Raises FileError if a file is missing, damaged or contradictory, UnsupportedError if its version, byte order or
        a tensor's type is not supported.
        """
        self._path = Path(path)
        self._descriptors: list[int] = []
        self.close = weakref.finalize(self, _close_all, self._descriptors)
        try:
            self._parts = self._open_all()
        except BaseException:
            self.close()
            raise
        self.keys: Mapping[str, Value] = MappingProxyType(
            {name: value for name, value in self._parts[0].header.keys.items() if not name.startswith(SPLIT_PREFIX)}
        )
        self._places = {
            entry.info.name: (part.descriptor, entry.offset) for part in self._parts for entry in part.header.tensors
        }
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(
            {entry.info.name: entry.info for part in self._parts for entry in part.header.tensors}
        )

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The path as given."""
        return self._path

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or the files of the split set in order."""
        return tuple(part.path for part in self._parts)

    @property
    def version(self) -> int:
        """GGUF version of the first file."""
        return self._parts[0].header.version

    @property
    def alignment(self) -> int:
        """Alignment of tensor data in the first file, in bytes."""
        return self._parts[0].header.alignment

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Keys as plain Python values."""
        return MappingProxyType({name: value.plain() for name, value in self.keys.items()})

    @property
    def architecture(self) -> str | None:
        """`general.architecture`; None if the file does not give it."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def file_type(self) -> int | None:
        """`general.file_type` (llama.cpp's llama_ftype); None if the file does not give it."""
        value = self.metadata.get("general.file_type")
        return value if isinstance(value, int) else None

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows start..stop as stored, in a fresh buffer: part "data", uint8 [stop - start, bytes per row].

        The result has the tensor's own shape if all rows are read, else [stop - start, cols].
        Raises UsageError for an unknown tensor or rows outside it, FileError if the file no longer holds them.
        """
        info = self._info(name)
        stop = info.rows if stop is None else stop
        if not 0 <= start <= stop <= info.rows:
            raise UsageError(f"{self._path}: rows {start} to {stop} of {name!r} do not exist; it has {info.rows}")
        row_bytes = TYPES[info.layout].row_bytes(info.cols)
        data = np.empty((stop - start, row_bytes), np.uint8)
        descriptor, offset = self._places[name]
        self._read(descriptor, offset + start * row_bytes, data.reshape(-1).data, name)
        shape = info.shape if stop - start == info.rows else (stop - start, info.cols)
        return PackedTensor(info.layout, shape, {"data": data})

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> QuantTensor | None:
        """See `Source.codes`. Errors as in `packed`."""
        from bitsmith.containers.gguf.blocks import CODECS

        packed = self.packed(name, start, stop)
        codec = CODECS.get(packed.layout)
        return None if codec is None else codec.decode(packed.parts, packed.shape[-1])

    def input_rounding(self, name: str) -> None:
        """None: GGUF files do not describe inputs."""

    def extent(self, name: str) -> Extent:
        """See `Source.extent`."""
        self._info(name)
        descriptor, offset = self._places[name]
        path = next(part.path for part in self._parts if part.descriptor == descriptor)
        return Extent(path, offset)

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """Decode the result of `packed`: float32 [rows, cols]."""
        if packed.layout in NUMBERS:
            return decode_numbers(packed.layout, packed.parts["data"])
        from bitsmith.containers.gguf.blocks import decode_rows  # imports all formats; running packed needs none

        return decode_rows(packed.layout, packed.parts["data"], packed.shape[-1])

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop decoded, float32 [stop - start, cols]; a vector is one row. Errors as in `packed`."""
        return self.decode(self.packed(name, start, stop))

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise UsageError(f"{self._path} has no tensor {name!r}; it has {len(self.tensors)} others") from None

    def _read(self, descriptor: int, offset: int, buffer: memoryview, name: str) -> None:
        if not self.close.alive:
            raise UsageError(f"{self._path} was closed, so tensor {name!r} cannot be read; open it again")
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(descriptor, [buffer[done : done + _LARGEST_READ]], offset + done)
            except OSError as cause:
                raise FileError(f"{self._path}: tensor {name!r} cannot be read: {cause}. Check the disk") from cause
            if not got:
                raise FileError(
                    f"{self._path}: tensor {name!r}: the file ends at {offset + done} bytes, but it was longer when it "
                    "was opened. Another program is writing to it; wait until it is done and start again"
                )
            done += got

    def _open(self, path: Path) -> _Part:
        try:
            descriptor = open_regular(path, "GGUF file")
        except OSError as cause:
            raise FileError(f"{path} cannot be opened: {cause.strerror}. Check the path") from None
        self._descriptors.append(descriptor)
        return _Part(path, descriptor, read_header(descriptor, path))

    def _open_all(self) -> tuple[_Part, ...]:
        """Open the file, or all files of its set in order."""
        opened = self._open(self._path)
        named = split_parts(self._path.name)
        count = _split_number(opened, SPLIT_COUNT, 1)
        if count <= 1 and (named is None or named[2] <= 1):
            return (opened,)
        if named is None or named[2] != count:
            raise FileError(
                f"{self._path} says that it is one of {count} files (split.count), but its name does not: expected a "
                f"name like {split_name(split_prefix(self._path.name), 1, max(count, 1))}. Rename it, and keep the "
                "files of the set together"
            )
        parts = []
        for number in range(1, count + 1):
            path = self._path.with_name(split_name(named[0], number, count))
            if path != self._path and not path.exists():
                raise FileError(f"{path} is missing: {self._path} is one of {count} files of a model. Download it too")
            part = opened if path == self._path else self._open(path)
            _check_part(part, number, count)
            parts.append(part)
        _check_set(parts)
        return tuple(parts)


def _check_part(part: _Part, number: int, count: int) -> None:
    found = (_split_number(part, SPLIT_NO, -1) + 1, _split_number(part, SPLIT_COUNT, 0))
    if found != (number, count):
        raise FileError(
            f"{part.path}: expected part {number} of {count} from its name, found part {found[0]} of {found[1]} in its "
            "split.no and split.count keys. Files of different sets were mixed or renamed; download them again"
        )


def _check_set(parts: list[_Part]) -> None:
    check_one_set({part.path: _set_mark(part) for part in parts})
    total = sum(len(part.header.tensors) for part in parts)
    names: set[str] = set()
    for part in parts:
        expected = _split_number(part, SPLIT_TENSORS, -1)
        if expected != total:
            raise FileError(
                f"{part.path}: expected {expected} tensors in the {len(parts)} files of the set "
                f"(split.tensors.count), found {total}. Files of different sets were mixed; download them again"
            )
        for entry in part.header.tensors:
            if entry.info.name in names:
                raise FileError(
                    f"{part.path}: tensor {entry.info.name[:80]!r} is already in another file of the set. "
                    "Files of different sets were mixed; download them again"
                )
            names.add(entry.info.name)


def _set_mark(part: _Part) -> str | None:
    value = part.header.keys.get(SET_KEY)
    return value.value if value is not None and isinstance(value.value, str) else None


def _split_number(part: _Part, key: str, default: int) -> int:
    value = part.header.keys.get(key)
    if value is None:
        return default
    if value.type is ValueType.BOOL or not isinstance(value.value, int):
        raise FileError(
            f"{part.path}: key {key!r}: expected an integer, found {value.type.name.lower()}. Download it again"
        )
    return value.value


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())

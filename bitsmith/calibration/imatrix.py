"""Reads and writes llama.cpp's importance files: `imatrix.gguf` and the older `.dat`.

Source: llama.cpp, tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp (build 11434).
GGUF: keys general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size (tokens); for each
tensor NAME float32 NAME.in_sum2 [matrices, cols], the sums of squared inputs, and NAME.counts [matrices, 1], tokens.
`.dat`, little-endian: int32 entries; for each entry int32 length and name, int32 chunks, int32 n, n float32 of mean
square times chunks; then int32 chunks, int32 length and name of the data set. These last three may be missing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.gguf.header import MAGIC
from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.gguf.writer import gguf_layout
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.containers.model_files import open_regular
from bitsmith.errors import FileError, UsageError, quoted
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.calibration_record import CalibrationRecord

SUFFIXES = (".gguf", ".dat")

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LARGEST_DAT = 256 << 20  # bytes; that of a model of 405 billion weights has 60 MB
_AGAIN = "It is damaged or not an importance file; make it again with `bitsmith imatrix` or llama-imatrix"
_INT = struct.Struct("<i")


@dataclass(frozen=True)
class Entry:
    """Sums of squares of one tensor's input.

    sums: [matrices, cols] float32, sums of squares over the tokens; a tensor of experts holds several matrices
    counts: [matrices] int64, number of tokens in each sum (number of chunks in a `.dat` file)
    """

    sums: np.ndarray
    counts: np.ndarray

    @property
    def importance(self) -> np.ndarray:
        """Mean squares, float32 [matrices, cols]; ones for a matrix that saw no token, as in llama-quantize."""
        counts = np.maximum(self.counts, 1)[:, None]
        seen = (self.counts > 0)[:, None]
        return np.where(seen, self.sums / counts.astype(np.float32), np.float32(1.0)).astype(np.float32)


@dataclass(frozen=True)
class Imatrix:
    """Content of an importance file.

    entries: by GGUF tensor name, ".weight" included
    datasets: names of the texts
    chunks: number of windows of text
    chunk_size: tokens per window; 0 if the file does not give it (`.dat`); counts are then in chunks
    """

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int


def is_imatrix_name(path: Path) -> bool:
    """Whether a file has the name of an importance file."""
    return path.suffix.lower() in SUFFIXES


def read_imatrix(path: Path) -> Imatrix:
    """Read either format; the first bytes decide which.

    Raises FileError if the file is missing, damaged or holds a model.
    """
    try:
        with open(open_regular(path, "importance file"), "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise FileError(f"{path}: the importance file cannot be read ({error.strerror}); check the path.") from error
    return _read_gguf(path) if magic == MAGIC else _read_dat(path)


def record_of(path: Path, imatrix: Imatrix) -> CalibrationRecord:
    """The record of an importance file, for a manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tokens = max(int(entry.counts.max()) for entry in imatrix.entries.values()) if imatrix.chunk_size else 0
    return CalibrationRecord(path.name, digest, tokens, imatrix.chunk_size, None)


# -- reading


def _read_gguf(path: Path) -> Imatrix:
    with GgufSource(path) as source:
        metadata = source.metadata
        if metadata.get("general.type") != "imatrix":
            raise FileError(
                f"{path}: expected an importance file (general.type = imatrix), found a GGUF file of type "
                f"{metadata.get('general.type', 'model')!r}; make one with `bitsmith imatrix`, or give a text."
            )
        names = [name.removesuffix(_SUMS) for name in source.tensors if name.endswith(_SUMS)]
        entries = {name: _gguf_entry(source, name) for name in names}
        if not entries:
            raise FileError(f"{path}: it holds no {_SUMS} tensors. {_AGAIN}.")
        datasets = metadata.get("imatrix.datasets", [])
        return Imatrix(
            entries=entries,
            datasets=tuple(str(each) for each in datasets) if isinstance(datasets, list) else (),
            chunks=_whole(metadata, "imatrix.chunk_count", path),
            chunk_size=_whole(metadata, "imatrix.chunk_size", path),
        )


def _gguf_entry(source: GgufSource, name: str) -> Entry:
    found = {kind: source.tensors.get(name + kind) for kind in (_SUMS, _COUNTS)}
    sums, counts = found[_SUMS], found[_COUNTS]
    if sums is None or counts is None or {sums.layout, counts.layout} != {"f32"} or counts.parameters != sums.rows:
        raise FileError(
            f"{source.path}: {name}: expected F32 tensors {_SUMS[1:]} [matrices, cols] and {_COUNTS[1:]} [matrices], "
            f"found {_shown(sums)} and {_shown(counts)}. {_AGAIN}."
        )
    return _checked(source.path, name, source.rows(name + _SUMS), source.rows(name + _COUNTS).reshape(-1))


def _shown(info: TensorInfo | None) -> str:
    return "none" if info is None else f"{info.layout} {list(info.shape)}"


def _whole(metadata: Mapping[str, Any], key: str, path: Path) -> int:
    value = metadata.get(key, 0)
    if not isinstance(value, int) or value < 0:
        raise FileError(f"{path}: key {key}: expected a whole number, found {value!r}. {_AGAIN}.")
    return value


def _checked(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> Entry:
    if not (np.isfinite(sums).all() and (sums >= 0).all()):
        raise FileError(f"{path}: {name}: its sums of squares must be finite and not negative. {_AGAIN}.")
    if not (np.isfinite(counts).all() and (counts >= 0).all() and (counts < 2.0**62).all()):
        raise FileError(f"{path}: {name}: its counts must be finite and not negative. {_AGAIN}.")
    return Entry(sums, np.rint(counts).astype(np.int64))


def _read_dat(path: Path) -> Imatrix:
    if path.stat().st_size > _LARGEST_DAT:
        raise FileError(f"{path}: {path.stat().st_size:,} bytes, too many for an importance file. {_AGAIN}.")
    data = path.read_bytes()
    cursor = _Cursor(path, data)
    entries: dict[str, Entry] = {}
    for _ in range(cursor.count("entries", 13)):
        name = cursor.text(cursor.count("bytes of a name", 1))
        chunks = np.array([max(cursor.number(), 0)], np.float64)
        values = cursor.floats(cursor.count("values", 4))
        if chunks[0] == 0:  # llama-quantize then uses the values unchanged
            chunks += 1
        entries[name] = _checked(path, name, values.reshape(1, -1), chunks)
    last = cursor.number() if cursor.left >= 4 else max(int(entry.counts.max()) for entry in entries.values())
    length = cursor.number() if cursor.left >= 4 else 0
    dataset = cursor.text(length) if 0 < length <= cursor.left else ""
    return Imatrix(entries, (dataset,) if dataset else (), max(last, 0), 0)


class _Cursor:
    """Reads the bytes of a `.dat` file in order and checks every count against the bytes left."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self) -> int:
        return int(_INT.unpack(self._take(4))[0])

    def count(self, what: str, smallest: int) -> int:
        """Read a count of things that take at least `smallest` bytes each."""
        count = self.number()
        if not 0 < count * smallest <= self.left:
            raise FileError(f"{self._path}: claims {count} {what}, but {self.left} bytes follow. {_AGAIN}.")
        return count

    def text(self, length: int) -> str:
        return self._take(length).decode("utf-8", "replace")

    def floats(self, count: int) -> np.ndarray:
        return np.frombuffer(self._take(4 * count), "<f4").copy()

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise FileError(
                f"{self._path}: ends at {len(self._data)} bytes, but {count - self.left} more are needed. {_AGAIN}."
            )
        self._at += count
        return self._data[self._at - count : self._at]


# -- writing


def imatrix_file(imatrix: Imatrix, filename: str) -> tuple[FileLayout, dict[str, np.ndarray]]:
    """The file's layout and the data of its regions by tensor. The ending of `filename` decides the format.

    Entries are written in the order of their names, as in llama-imatrix. Raises UsageError for any other ending.
    """
    ending = Path(filename).suffix.lower()
    if ending == ".gguf":
        return _gguf_file(imatrix, filename)
    if ending == ".dat":
        data = np.frombuffer(_dat_bytes(imatrix), np.uint8)
        return FileLayout(filename, b"", (Region("imatrix", "data", 0, data.nbytes),), data.nbytes), {"imatrix": data}
    raise UsageError(
        f"--out={quoted(filename)}: an importance file ends in .gguf, or in .dat for llama.cpp's older format."
    )


def _gguf_file(imatrix: Imatrix, filename: str) -> tuple[FileLayout, dict[str, np.ndarray]]:
    keys: dict[str, Value] = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(list(imatrix.datasets), ValueType.STRING),
        "imatrix.chunk_count": u32(imatrix.chunks),
        "imatrix.chunk_size": u32(imatrix.chunk_size or 1),  # if 1, counts are in chunks
    }
    data: dict[str, np.ndarray] = {}
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        data[name + _SUMS] = entry.sums.astype("<f4")
        data[name + _COUNTS] = entry.counts.astype("<f4").reshape(-1, 1)
    infos = [TensorInfo(name, values.shape, "f32", values.nbytes) for name, values in data.items()]
    return gguf_layout(filename, keys, infos)[0], data


def _dat_bytes(imatrix: Imatrix) -> bytes:
    """The bytes of a `.dat` file. Its chunks are the token counts in windows, rounded up."""
    parts = [_INT.pack(len(imatrix.entries))]
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        chunks = max(1, -(-int(entry.counts.max()) // (imatrix.chunk_size or 1)))
        values = (entry.importance * np.float32(chunks)).astype("<f4")
        raw = name.encode()
        parts += [_INT.pack(len(raw)), raw, _INT.pack(chunks), _INT.pack(values.size), values.tobytes()]
    dataset = (imatrix.datasets[-1] if imatrix.datasets else "").encode()
    return b"".join([*parts, _INT.pack(imatrix.chunks), _INT.pack(len(dataset)), dataset])

"""Reading checkpoints in safetensors files: one file, or a folder with an index of shards.

All headers are checked on opening. Data is read by slabs of rows into fresh buffers, never mapped. Weights of the
native container (see `bitsmith.containers.native`) appear as one tensor each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bitsmith.containers.native import LAYOUT_PREFIX, SHAPES_KEY, TENSORS_KEY, NativeCodec
from bitsmith.containers.safetensors_header import DTYPES, Header, HeaderEntry, read_header
from bitsmith.containers.safetensors_layout import INDEX_NAME
from bitsmith.errors import FileError, TensorError, UnsupportedError, UsageError
from bitsmith.formats import get_format
from bitsmith.tensor import PackedTensor, TensorInfo

_INDEX_LIMIT = 256_000_000  # bytes
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsSource:
    """A checkpoint in safetensors, see `bitsmith.containers.base.Source`.

    Opens a .safetensors file, or a folder with model.safetensors, model.safetensors.index.json and its shards, or
    one other .safetensors file. Raises FileError, naming file and tensor, for anything that is missing or
    contradicts itself, and for pickled checkpoints, which are never read.

    Layouts of plain tensors are safetensors' dtypes in lower case ("f32", "bf16", "f8_e4m3", "i8"); native weights
    have "bitsmith/<format>".
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        files, wanted = _find_files(self._path)
        headers = [read_header(file) for file in files]
        self._headers = {header.path: header for header in headers}
        _check_index(self._path, headers, wanted)
        self._metadata = _merged_metadata(headers)
        self._entries = {name: (header.path, entry) for header in headers for name, entry in header.entries.items()}
        self._codecs = _native_codecs(self._path, self._metadata)
        self._tensors = self._fold()

    @property
    def path(self) -> Path:
        """As it was given."""
        return self._path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the tensors lie in, by name."""
        return tuple(self._headers)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """In file order; native weights where their first part lies."""
        return self._tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        """`__metadata__` of all files together; of different values for one key the first, but native tables united."""
        return MappingProxyType(self._metadata)

    @property
    def file_metadata(self) -> Mapping[Path, Mapping[str, str]]:
        """`__metadata__` of each file."""
        return {path: header.metadata for path, header in self._headers.items()}

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows start..stop as stored: part "data", uint8 [rows, bytes per row], or a native weight's parts.

        The shape is the tensor's own where all rows are asked for, else [rows, cols]. Raises UsageError for an
        unknown tensor or rows outside it, FileError where the file no longer holds what its header said.
        """
        info = self._info(name)
        stop = info.rows if stop is None else stop
        if not 0 <= start <= stop <= info.rows:
            raise UsageError(f"{self._path}: rows {start} to {stop} of {name!r} do not exist; it has {info.rows}")
        codec = self._codecs.get(name)
        parts: dict[str, np.ndarray] = {}
        if codec is None:
            parts["data"] = self._read(name, info.rows, start, stop)
        else:
            for part, (shape, dtype) in codec.layout(info.shape).items():
                raw = self._read(f"{name}.{part}", info.rows, start, stop)
                parts[part] = raw.view(dtype).reshape(stop - start, *shape[len(info.shape) - 1 :])
        shape = info.shape if stop - start == info.rows else (stop - start, info.cols)
        return PackedTensor(info.layout, shape, parts)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop decoded: float32 [stop - start, cols]; a vector is one row.

        Raises as `packed`, and TensorError for codes that mean no value.
        """
        try:
            return self.decode(self.packed(name, start, stop))
        except TensorError as error:
            raise TensorError(f"{self._path}: {name}: {error}") from error

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """What `packed` gave, as float32 [rows, cols]. Raises TensorError for codes that mean no value."""
        cols = packed.shape[-1] if packed.shape else 1
        if packed.layout.startswith(LAYOUT_PREFIX):
            codec = NativeCodec(get_format(packed.layout.removeprefix(LAYOUT_PREFIX)))
            values: np.ndarray = codec.decode(packed.parts, cols).values()
            return values
        data = packed.parts["data"]
        return data.view(DTYPES[packed.layout.upper()]).reshape(len(data), cols).astype(np.float32)

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise UsageError(f"{self._path} has no tensor {name!r}; it has {len(self._tensors)} others")
        return self._tensors[name]

    def _fold(self) -> Mapping[str, TensorInfo]:
        """Plain entries as they are; the parts of a native weight, checked, as one tensor in its first part's place."""
        owner: dict[str, str] = {}
        infos: dict[str, TensorInfo] = {}
        for name, (codec, shape) in _native_shapes(self._path, self._codecs, self._metadata).items():
            infos[name] = self._native_info(name, codec, shape)
            owner |= {f"{name}.{part}": name for part in codec.layout(shape)}
            if name in self._entries:
                raise FileError(
                    f"{self._path}: {name!r} is there twice, plain and as {infos[name].layout}; write it again"
                )
        tensors: dict[str, TensorInfo] = {}
        for entry_name, (_, entry) in self._entries.items():
            name = owner.get(entry_name, entry_name)
            if name not in tensors:
                plain = TensorInfo(name, entry.shape, entry.dtype.lower(), entry.nbytes)
                tensors[name] = infos.get(name, plain)
        return MappingProxyType(tensors)

    def _native_info(self, name: str, codec: NativeCodec, shape: tuple[int, ...]) -> TensorInfo:
        nbytes = 0
        try:
            layout = codec.layout(shape)
        except UnsupportedError as error:
            raise FileError(f"{self._path}: {name}: shape {list(shape)} is impossible: {error}") from error
        for part, (expected, dtype) in layout.items():
            if f"{name}.{part}" not in self._entries:
                raise FileError(
                    f"{self._path}: {name} is {codec.format.name} by {TENSORS_KEY} but its entry {name}.{part} is "
                    "missing; the file is damaged: make it again"
                )
            file, entry = self._entries[f"{name}.{part}"]
            if entry.shape != expected or DTYPES[entry.dtype] != dtype:
                raise FileError(
                    f"{file}: entry {name}.{part} is {entry.dtype} {list(entry.shape)}; {codec.format.name} of shape "
                    f"{list(shape)} needs {dtype.name} {list(expected)}: the file is damaged, make it again"
                )
            nbytes += entry.nbytes
        return TensorInfo(name, shape, LAYOUT_PREFIX + codec.format.name, nbytes)

    def _read(self, entry_name: str, rows: int, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an entry of `rows` rows: uint8 [stop - start, bytes per row]."""
        path, entry = self._entries[entry_name]
        row_bytes = entry.nbytes // max(rows, 1)
        buffer = np.empty((stop - start, row_bytes), np.uint8)
        _read_into(path, self._headers[path].size, entry, start * row_bytes, buffer)
        return buffer


def _read_into(path: Path, size: int, entry: HeaderEntry, skip: int, buffer: np.ndarray) -> None:
    """Fill `buffer` from `skip` bytes into the entry's data."""
    left = buffer.reshape(-1).data
    try:
        with path.open("rb", buffering=0) as file:
            if path.stat().st_size != size:
                raise FileError(
                    f"{path} changed its size since it was opened, before {entry.name!r} was read; start again"
                )
            file.seek(entry.offset + skip)
            while left:
                count = file.readinto(left)
                if not count:
                    raise FileError(f"{path} ended while {entry.name!r} was read; it is truncated, or being written")
                left = left[count:]
    except OSError as error:
        raise FileError(f"{path}: reading {entry.name!r} failed: {error.strerror or error}") from error


def _find_files(path: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files of a checkpoint, and the index's map from entries to file names if there is one."""
    if path.is_file():
        if path.suffix.lower() in _PICKLES:
            raise _pickled(path, [path.name])
        return [path], None
    if not path.is_dir():
        raise FileError(f"{path} is neither a file nor a folder; name a .safetensors file or a folder that holds one")
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"], None
    if (path / INDEX_NAME).is_file():
        wanted = _read_index(path / INDEX_NAME)
        return [path / name for name in sorted(set(wanted.values()))], wanted
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found, None
    if found:
        names = ", ".join(file.name for file in found[:4])
        raise FileError(f"{path} holds {len(found)} safetensors files ({names}) but no {INDEX_NAME}; name one of them")
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _PICKLES)
    if pickles:
        raise _pickled(path, pickles)
    raise FileError(f"{path} holds no safetensors file; expected model.safetensors, or {INDEX_NAME} and its shards")


def _pickled(path: Path, names: list[str]) -> FileError:
    return FileError(
        f"{path}: {names[0]} is a pickled checkpoint, which can run code when it is opened; bitsmith never reads "
        "those. Download the model's safetensors files, or convert it with transformers: save_pretrained(...)"
    )


def _read_index(path: Path) -> dict[str, str]:
    """The index's map from entry to file name, with every file there and none outside the folder."""
    try:
        if path.stat().st_size > _INDEX_LIMIT:
            raise FileError(f"{path} has {path.stat().st_size} bytes, too many for an index; download it again")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not readable as JSON ({str(error)[:80]}); download it again") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise FileError(f'{path} must hold "weight_map", an object from tensors to file names; download it again')
    for tensor, name in table.items():
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise FileError(
                f"{path}: tensor {tensor!r} lies in {name!r}, which is no plain file name in the same folder"
            )
        if not (path.parent / name).is_file():
            raise FileError(f"{path}: tensor {tensor!r} lies in {name}, which is missing; download that file")
    return table


def _check_index(path: Path, headers: Iterable[Header], wanted: Mapping[str, str] | None) -> None:
    """Every tensor of the index lies in the shard it names, and no tensor in two shards."""
    seen: dict[str, Path] = {}
    for header in headers:
        for name in header.entries:
            if name in seen:
                raise FileError(
                    f"{path}: tensor {name!r} lies in {seen[name].name} and in {header.path.name}; keep one"
                )
            seen[name] = header.path
    for name, file in (wanted or {}).items():
        if name not in seen or seen[name].name != file:
            found = f"it lies in {seen[name].name}" if name in seen else "no shard has it"
            raise FileError(
                f"{path / INDEX_NAME}: tensor {name!r} should lie in {file}, but {found}; "
                "the index and its shards do not belong together: download them again"
            )


def _merged_metadata(headers: Iterable[Header]) -> dict[str, str]:
    merged: dict[str, str] = {}
    tables: dict[str, dict[str, object]] = {}
    for header in headers:
        for key, text in header.metadata.items():
            if key in (TENSORS_KEY, SHAPES_KEY):
                tables.setdefault(key, {}).update(_table(header.path, key, text))
            else:
                merged.setdefault(key, text)
    return merged | {key: json.dumps(table, separators=(",", ":")) for key, table in tables.items()}


def _table(path: Path, key: str, text: str) -> dict[str, object]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {key} in its metadata is not JSON ({str(error)[:80]}); make the file again") from None
    if not isinstance(table, dict):
        raise FileError(f"{path}: {key} in its metadata is no JSON object; make the file again")
    return table


def _native_codecs(path: Path, metadata: Mapping[str, str]) -> dict[str, NativeCodec]:
    """The codec of each native weight."""
    codecs: dict[str, NativeCodec] = {}
    for name, format in _table(path, TENSORS_KEY, metadata.get(TENSORS_KEY, "{}")).items():
        try:
            codecs[name] = NativeCodec(get_format(str(format)))
        except UsageError as error:
            raise FileError(f"{path}: the format of {name!r} is unknown to this version: {error}") from error
    return codecs


def _native_shapes(
    path: Path, codecs: Mapping[str, NativeCodec], metadata: Mapping[str, str]
) -> dict[str, tuple[NativeCodec, tuple[int, ...]]]:
    """Codec and shape of each native weight."""
    shapes = _table(path, SHAPES_KEY, metadata.get(SHAPES_KEY, "{}"))
    found: dict[str, tuple[NativeCodec, tuple[int, ...]]] = {}
    for name, codec in codecs.items():
        shape = shapes.get(name)
        if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 < n < 1 << 48 for n in shape):
            raise FileError(
                f"{path}: {name!r} is {codec.format.name} but {SHAPES_KEY} in the metadata gives it the shape "
                f"{str(shape)[:80]}; the file is damaged: make it again"
            )
        if math.prod(shape[:-1]) >= 1 << 48:
            raise FileError(f"{path}: {name!r} cannot have the shape {shape}; the file is damaged: make it again")
        found[name] = (codec, tuple(shape))
    return found

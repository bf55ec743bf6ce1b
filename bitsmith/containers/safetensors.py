"""Reads checkpoints in safetensors files: one file, or a folder with an index of shards.

All headers are checked on opening. Data is read in slabs of rows into fresh buffers and is never mapped. A weight that
is stored in several entries (native, GPTQ, AWQ, compressed-tensors) appears as one tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bitsmith.containers.base import Extent, RowAxis, WholeTensorCodec
from bitsmith.containers.composite import CompositeTensor
from bitsmith.containers.floats import NUMBERS, decode_numbers
from bitsmith.containers.hf_folder import read_object
from bitsmith.containers.hf_reader import fold_quantized
from bitsmith.containers.manifest import SET_KEY, check_one_set
from bitsmith.containers.model_files import open_regular
from bitsmith.containers.native import SHAPES_KEY, TENSORS_KEY
from bitsmith.containers.native_reader import fold_native, table
from bitsmith.containers.safetensors_header import DTYPES, FileState, Header, HeaderEntry, file_state, read_header
from bitsmith.containers.safetensors_layout import INDEX_NAME
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import FileError, TensorError, UnsupportedError, UsageError
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import PackedTensor, QuantTensor, TensorInfo

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsSource:
    """A checkpoint in safetensors, see `bitsmith.containers.base.Source`.

    Opens a .safetensors file, or a folder with model.safetensors, model.safetensors.index.json and its shards, or
    one other .safetensors file. Raises FileError, naming file and tensor, if anything is missing or contradictory, and
    for pickled checkpoints, which are never read.

    Layouts of plain tensors are safetensors' dtypes in lower case ("f32", "bf16", "f8_e4m3", "i8"). Native weights
    have "bitsmith/<format>". Others are for instance "gptq/int4-g128", "awq/int4-g128", "compressed/pack-int4-g128".
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        files, wanted = _find_files(self._path)
        headers = [read_header(file) for file in files]
        self._headers = {header.path: header for header in headers}
        check_one_set({header.path: header.metadata.get(SET_KEY) for header in headers})
        _check_index(self._path, headers, wanted)
        self._metadata = _merged_metadata(headers)
        self._entries = {name: (header.path, entry) for header in headers for name, entry in header.entries.items()}
        folder = self._path if self._path.is_dir() else self._path.parent
        folded = fold_native(self._path, self._metadata, self._entries) + fold_quantized(folder, self._entries)
        self._folded = {weight.info.name: weight for weight in folded}
        self._codecs = {weight.info.layout: weight.codec for weight in folded}
        self._tensors = self._fold()

    @property
    def path(self) -> Path:
        """The path as given."""
        return self._path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, sorted by name."""
        return tuple(self._headers)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors in file order; a folded weight takes the place of its first part."""
        return self._tensors

    @property
    def further(self) -> Mapping[str, TensorInfo]:
        """Entries beside a weight that do not affect its values, as plain tensors; `packed` reads them too."""
        names = (name for folded in self._folded.values() for name in folded.beside)
        return {name: _plain(name, self._entries[name][1]) for name in names}

    def stored_as(self, name: str) -> CompositeTensor | None:
        """How a weight is stored in several entries; None for a plain tensor."""
        return self._folded.get(name)

    @property
    def metadata(self) -> Mapping[str, str]:
        """`__metadata__` of all files together. If values differ, the first counts, but native tables are merged."""
        return MappingProxyType(self._metadata)

    @property
    def file_metadata(self) -> Mapping[Path, Mapping[str, str]]:
        """`__metadata__` of each file."""
        return {path: header.metadata for path, header in self._headers.items()}

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows start..stop as stored: part "data", uint8 [rows, bytes per row], or a folded weight's parts.

        The shape is the tensor's own if all rows are read, else [rows, cols]. Raises UsageError for an unknown tensor
        or rows outside it, FileError if the file has changed since it was opened.
        """
        info = self._info(name)
        stop = info.rows if stop is None else stop
        if not 0 <= start <= stop <= info.rows:
            raise UsageError(f"{self._path}: rows {start} to {stop} of {name!r} do not exist; it has {info.rows}")
        folded = self._folded.get(name)
        if folded is None:
            raw = self._read(name, (info.rows,), RowAxis(0), start, stop)
            parts = {"data": raw.reshape(stop - start, info.nbytes // max(info.rows, 1))}
        else:
            parts = self._parts(folded, start, stop)
        shape = info.shape if stop - start == info.rows else (stop - start, info.cols)
        return PackedTensor(info.layout, shape, parts)

    def _parts(self, folded: CompositeTensor, start: int, stop: int) -> dict[str, np.ndarray]:
        codec, info = folded.codec, folded.info
        layout = codec.layout(info.shape)
        parts: dict[str, np.ndarray] = {}
        if not isinstance(codec, WholeTensorCodec):
            for part, (shape, dtype) in layout.items():
                raw = self._read(folded.entries[part], (info.rows,), RowAxis(0), start, stop)
                parts[part] = raw.view(dtype).reshape(stop - start, *shape[len(info.shape) - 1 :])
            return parts
        first = start // codec.row_multiple * codec.row_multiple
        last = min(info.rows, -(-stop // codec.row_multiple) * codec.row_multiple)
        for part, (shape, dtype) in layout.items():
            axis = codec.axes[part]
            if axis is None:
                parts[part] = self._read(folded.entries[part], (1,), RowAxis(0), 0, 1).view(dtype).reshape(shape)
                continue
            raw = self._read(folded.entries[part], shape, axis, first, last)
            found = (*shape[: axis.axis], axis.entry(last) - axis.entry(first), *shape[axis.axis + 1 :])
            parts[part] = raw.view(dtype).reshape(found)
        return parts if (first, last) == (start, stop) else codec.window(parts, start - first, stop - first)

    def extent(self, name: str) -> Extent | None:
        """See `Source.extent`."""
        self._info(name)
        if name in self._folded:
            return None
        path, entry = self._entries[name]
        return Extent(path, entry.offset)

    def gathered(self, name: str) -> bool:
        """Whether rows are not contiguous in the tensor's entries, see `WholeTensorCodec`."""
        folded = self._folded.get(name)
        return folded is not None and isinstance(folded.codec, WholeTensorCodec)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop decoded: float32 [stop - start, cols]; a vector is one row.

        Raises as `packed` does, and TensorError for codes without a value.
        """
        try:
            return self.decode(self.packed(name, start, stop))
        except TensorError as error:
            raise TensorError(f"{self._path}: {name}: {error.message}") from error

    def codes(self, name: str, start: int = 0, stop: int | None = None) -> QuantTensor | None:
        """See `Source.codes`. Raises as `rows` does."""
        folded = self._folded.get(name)
        packed = self.packed(name, start, stop)
        try:
            return None if folded is None else folded.codec.decode(packed.parts, packed.shape[-1])
        except TensorError as error:
            raise TensorError(f"{self._path}: {name}: {error.message}") from error

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """Decode the result of `packed`: float32 [rows, cols]. Raises TensorError for codes without a value."""
        cols = packed.shape[-1] if packed.shape else 1
        codec = self._codecs.get(packed.layout)
        if codec is not None:
            values: np.ndarray = codec.decode(packed.parts, cols).values()
            return values
        data = packed.parts["data"]
        if packed.layout in NUMBERS:
            return decode_numbers(packed.layout, data).reshape(len(data), cols)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is then refused by name
            return data.view(DTYPES[packed.layout.upper()]).reshape(len(data), cols).astype(np.float32)

    def input_rounding(self, name: str) -> InputRounding | None:
        """See `Source.input_rounding`. Raises UsageError for an unknown tensor."""
        self._info(name)
        folded = self._folded.get(name)
        if folded is None:
            return None
        if isinstance(folded.inputs, UnsupportedError):
            raise folded.inputs
        if not isinstance(folded.codec, StaticInput):
            return folded.inputs
        try:
            return folded.codec.read(self._parts(folded, 0, 0))
        except TensorError as error:
            raise TensorError(f"{self._path}: {name}: {error.message}") from error

    def _info(self, name: str) -> TensorInfo:
        if name not in self._tensors and any(name in folded.beside for folded in self._folded.values()):
            return _plain(name, self._entries[name][1])
        if name not in self._tensors:
            raise UsageError(f"{self._path} has no tensor {name!r}; it has {len(self._tensors)} others")
        return self._tensors[name]

    def _fold(self) -> Mapping[str, TensorInfo]:
        """Each plain entry as a tensor, and the parts of a folded weight as one tensor in its first part's place."""
        owner: dict[str, str] = {}
        for name, folded in self._folded.items():
            owner |= dict.fromkeys((*folded.entries.values(), *folded.beside), name)
            if name in self._entries and name not in folded.entries.values():
                raise FileError(
                    f"{self._path}: {name!r} is there twice, plain and as {folded.info.layout}; write the file again"
                )
        tensors: dict[str, TensorInfo] = {}
        for entry_name, (_, entry) in self._entries.items():
            name = owner.get(entry_name, entry_name)
            if name not in tensors:
                tensors[name] = self._folded[name].info if name in self._folded else _plain(name, entry)
        return MappingProxyType(tensors)

    def _read(self, entry_name: str, shape: tuple[int, ...], axis: RowAxis, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an entry of shape `shape`, along `axis`: uint8 [outer, bytes]; outer is 1 for axis 0."""
        path, entry = self._entries[entry_name]
        outer = math.prod(shape[: axis.axis])
        stride = entry.nbytes // max(outer, 1)
        step = stride // max(shape[axis.axis], 1)
        begin, end = axis.entry(start), axis.entry(stop)
        buffer = np.empty((outer, (end - begin) * step), np.uint8)
        pieces = [buffer] if buffer.shape[1] == stride else list(buffer)
        _read_into(
            path, self._headers[path].file, entry, [(i * stride + begin * step, p) for i, p in enumerate(pieces)]
        )
        return buffer


def _plain(name: str, entry: HeaderEntry) -> TensorInfo:
    return TensorInfo(name, entry.shape, entry.dtype.lower(), entry.nbytes)


def _read_into(path: Path, state: FileState, entry: HeaderEntry, pieces: Sequence[tuple[int, np.ndarray]]) -> None:
    """Fill each buffer from the entry's data. pieces: (offset in the data, buffer)"""
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            if file_state(file.fileno()) != state:
                raise FileError(
                    f"{path} was replaced or changed since it was opened, before {entry.name!r} was read; start again"
                )
            for skip, buffer in pieces:
                left = buffer.reshape(-1).data
                file.seek(entry.offset + skip)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise FileError(
                            f"{path} ended while {entry.name!r} was read; it is truncated, or a program is writing it"
                        )
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
        raise FileError(f"{path} is neither a file nor a folder; give a .safetensors file or a folder that holds one")
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
        raise FileError(f"{path} holds {len(found)} safetensors files ({names}) but no {INDEX_NAME}; give one of them")
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _PICKLES)
    if pickles:
        raise _pickled(path, pickles)
    raise FileError(f"{path} holds no safetensors file; expected model.safetensors, or {INDEX_NAME} and its shards")


def _pickled(path: Path, names: list[str]) -> FileError:
    return FileError(
        f"{path}: {names[0]} is a pickled checkpoint, which can run code when it is opened; bitsmith never reads "
        "such files. Download the model's safetensors files, or convert it with transformers: save_pretrained(...)"
    )


def _read_index(path: Path) -> dict[str, str]:
    """The index's map from entry to file name. Checks that every file exists and lies in the folder."""
    content = read_object(path)
    table = content.get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise FileError(f'{path} must hold "weight_map", an object from tensors to file names; download it again')
    for tensor, name in table.items():
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise FileError(
                f"{path}: tensor {tensor!r} lies in {name!r}, which is not a plain file name in the same folder"
            )
        if not (path.parent / name).is_file():
            raise FileError(f"{path}: tensor {tensor!r} lies in {name}, which is missing; download that file")
    return table


def _check_index(path: Path, headers: Iterable[Header], wanted: Mapping[str, str] | None) -> None:
    """Check that every tensor lies in the shard that the index names, and no tensor in two shards."""
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
                tables.setdefault(key, {}).update(table(header.path, key, text))
            else:
                merged.setdefault(key, text)
    return merged | {key: json.dumps(united, separators=(",", ":")) for key, united in tables.items()}

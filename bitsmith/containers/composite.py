"""Weights stored in several entries of a safetensors file, each seen as one tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitsmith.containers.base import Codec
from bitsmith.containers.hf_input_rounding import Inputs
from bitsmith.containers.native import SHAPES_KEY, TENSORS_KEY, NativeCodec
from bitsmith.containers.safetensors_header import DTYPES, HeaderEntry
from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.quant.formats import get_format
from bitsmith.quant.tensor import TensorInfo

Entries = Mapping[str, tuple[Path, HeaderEntry]]  # every entry of a checkpoint by name, with its file


@dataclass(frozen=True)
class CompositeTensor:
    """One weight.

    entries: entry name by part, in the codec's order
    beside: further entries of the weight, which do not affect its values
    inputs: how the weight's input is rounded
    """

    info: TensorInfo
    codec: Codec
    entries: Mapping[str, str]
    beside: tuple[str, ...] = ()
    inputs: Inputs = None


def fold(
    path: Path,
    codec: Codec,
    info: TensorInfo,
    names: Mapping[str, str],
    entries: Entries,
    *,
    said_by: str,
    beside: tuple[str, ...] = (),
) -> CompositeTensor:
    """A weight with its parts in the entries `names`. Each entry is checked against the codec's layout.

    info: the tensor; its nbytes is filled in
    said_by: the key that gives the tensor's layout, for errors
    Raises FileError if the shape is impossible, or an entry is missing or has another dtype or shape.
    """
    label = info.layout.removeprefix("bitsmith/")
    try:
        layout = codec.layout(info.shape)
    except UnsupportedError as error:
        raise FileError(f"{path}: {info.name}: shape {list(info.shape)} is impossible: {error}") from error
    nbytes = 0
    for part, (expected, dtype) in layout.items():
        if names[part] not in entries:
            raise FileError(
                f"{path}: {info.name} is {label} according to {said_by}, but its entry {names[part]} is missing; the "
                "file is damaged: make it again"
            )
        file, entry = entries[names[part]]
        if entry.shape != expected or DTYPES[entry.dtype] != dtype:
            raise FileError(
                f"{file}: entry {names[part]} is {entry.dtype} {list(entry.shape)}; {label} of shape "
                f"{list(info.shape)} needs {dtype.name} {list(expected)}: the file is damaged, make it again"
            )
        nbytes += entry.nbytes
    whole = TensorInfo(info.name, info.shape, info.layout, nbytes)
    return CompositeTensor(whole, codec, {part: names[part] for part in layout}, beside)


def fold_native(path: Path, metadata: Mapping[str, str], entries: Entries) -> list[CompositeTensor]:
    """The weights of the native container, from its metadata. Raises FileError if metadata and entries disagree."""
    found = []
    shapes = table(path, SHAPES_KEY, metadata.get(SHAPES_KEY, "{}"))
    for name, format in table(path, TENSORS_KEY, metadata.get(TENSORS_KEY, "{}")).items():
        try:
            codec = NativeCodec(get_format(str(format)))
        except UsageError as error:
            raise FileError(f"{path}: the format of {name!r} is unknown to this version: {error}") from error
        info = TensorInfo(name, _shape(path, name, codec, shapes.get(name)), f"bitsmith/{codec.format.name}", 0)
        names = {part: f"{name}.{part}" for part in ("codes", *codec.format.params_layout(1, codec.format.multiple))}
        found.append(fold(path, codec, info, names, entries, said_by=TENSORS_KEY))
    return found


def table(path: Path, key: str, text: str) -> dict[str, object]:
    """A JSON object in a file's metadata. Raises FileError for any other text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {key} in its metadata is not JSON ({str(error)[:80]}); make the file again") from None
    if not isinstance(content, dict):
        raise FileError(f"{path}: {key} in its metadata is not a JSON object; make the file again")
    return content


def _shape(path: Path, name: str, codec: NativeCodec, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 < n < 1 << 48 for n in shape):
        raise FileError(
            f"{path}: {name!r} is {codec.format.name} but {SHAPES_KEY} in the metadata gives it the shape "
            f"{str(shape)[:80]}; the file is damaged: make it again"
        )
    if math.prod(shape[:-1]) >= 1 << 48:
        raise FileError(f"{path}: {name!r} cannot have the shape {shape}; the file is damaged: make it again")
    return tuple(shape)

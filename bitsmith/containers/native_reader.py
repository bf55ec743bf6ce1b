"""Reading the native container: its weights, as the metadata of its files names them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from bitsmith.containers.bounded_json import parse_json
from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.native import SHAPES_KEY, TENSORS_KEY, NativeCodec
from bitsmith.errors import FileError, UsageError
from bitsmith.quant.formats import get_format
from bitsmith.quant.tensor import TensorInfo


def fold_native(path: Path, metadata: Mapping[str, str], entries: Entries) -> list[CompositeTensor]:
    """The weights of the native container, from its metadata. Raises FileError if metadata and entries disagree."""
    found = []
    shapes = table(path, SHAPES_KEY, metadata.get(SHAPES_KEY, "{}"))
    for name, format in table(path, TENSORS_KEY, metadata.get(TENSORS_KEY, "{}")).items():
        try:
            codec = NativeCodec(get_format(str(format)))
        except UsageError as error:
            raise FileError(f"{path}: the format of {name!r} is unknown to this version: {error.message}") from error
        info = TensorInfo(name, _shape(path, name, codec, shapes.get(name)), f"bitsmith/{codec.format.name}", 0)
        names = {part: f"{name}.{part}" for part in ("codes", *codec.format.params_layout(1, codec.format.multiple))}
        found.append(fold(path, codec, info, names, entries, said_by=TENSORS_KEY))
    return found


def table(path: Path, key: str, text: str) -> dict[str, object]:
    """A JSON object in a file's metadata. Raises FileError for any other text."""
    content = parse_json(text.encode("utf-8", "surrogatepass"), f"{path}: {key} in its metadata")
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

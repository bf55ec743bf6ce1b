"""Weights stored in several entries of a safetensors file, each seen as one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitsmith.containers.base import Codec
from bitsmith.containers.hf_input_rounding import Inputs
from bitsmith.containers.safetensors_header import DTYPES, HeaderEntry
from bitsmith.errors import FileError, UnsupportedError
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
        raise FileError(f"{path}: {info.name}: shape {list(info.shape)} is impossible: {error.message}") from error
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

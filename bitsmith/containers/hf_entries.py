"""Functions that the readers of quantized folders share: entries by module, and checked numbers of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitsmith.containers.composite import Entries
from bitsmith.containers.safetensors_header import HeaderEntry
from bitsmith.errors import FileError, UnsupportedError

_PRECISIONS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def modules(entries: Entries, suffix: str) -> list[str]:
    """Modules that have an entry with this ending."""
    return [name.removesuffix(suffix) for name in entries if name.endswith(suffix)]


def entry_of(folder: Path, entries: Entries, name: str) -> HeaderEntry:
    """The entry of that name. Raises FileError if it is missing."""
    if name not in entries:
        raise FileError(f"{folder}: entry {name} is missing; the file is damaged: download it again")
    return entries[name][1]


def matrix_shape(folder: Path, entries: Entries, name: str) -> tuple[int, int]:
    """The shape of a matrix. Raises FileError if the entry is missing or not a matrix."""
    shape = entry_of(folder, entries, name).shape
    if len(shape) != 2:
        raise FileError(f"{folder}: entry {name} has {len(shape)} dimensions, expected 2; download the file again")
    return shape[0], shape[1]


def precision_of(folder: Path, entries: Entries, name: str) -> str:
    """The precision of scales: "f32", "f16" or "bf16". Raises FileError for another dtype."""
    dtype = entry_of(folder, entries, name).dtype
    if dtype not in _PRECISIONS:
        raise FileError(f"{folder}: entry {name} is {dtype}; expected F16, BF16 or F32: download it again")
    return _PRECISIONS[dtype]


def known_integer(folder: Path, config: Mapping[str, Any], key: str, known: tuple[int, ...]) -> int:
    """A number of the configuration. Raises UnsupportedError if it is not one of `known`."""
    value = config.get(key)
    if type(value) is not int or value not in known:
        raise UnsupportedError(
            f"{folder}: quantization_config has {key} {str(value)[:40]}; known: {', '.join(map(str, known))}"
        )
    return value


def group_size(folder: Path, config: Mapping[str, Any], key: str) -> int:
    """Number of weights in a group; 0 for a whole row (-1 in the file)."""
    value = config.get(key)
    if type(value) is not int or value == 0 or not -1 <= value < 1 << 32:
        raise FileError(f"{folder}: quantization_config has {key} {str(value)[:40]}; expected -1 or a positive number")
    return 0 if value == -1 else value

"""The position of every byte of a safetensors file, for one file or several with an index."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bitsmith.containers.layout import FileLayout, Region
from bitsmith.containers.safetensors_header import DTYPES, HEADER_LIMIT
from bitsmith.errors import UnsupportedError, UsageError

INDEX_NAME = "model.safetensors.index.json"


class Entry(NamedTuple):
    """One entry to write: part `part` of tensor `tensor`, under `name`.

    dtype: the safetensors name, in upper or lower case ("BF16", "bf16")
    """

    tensor: str
    part: str
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes. Raises UsageError for a dtype unknown to safetensors."""
        return math.prod(self.shape) * _itemsize(self)


def safetensors_layout(
    filename: str,
    metadata: Mapping[str, str],
    parts: Sequence[tuple[str, str, str, str, tuple[int, ...]]],
) -> FileLayout:
    """The layout of one file: entries in the given order; the data starts at a multiple of 8 bytes and has no gaps.

    parts: as `Entry`. The format allows no gaps between entries; put wide dtypes first if alignment matters.
    The same arguments give the same bytes. Metadata keys are sorted.
    Raises UsageError for two entries with one name, UnsupportedError if the header exceeds the format's limit.
    """
    entries = [Entry(*part) for part in parts]
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for entry in entries:
        if entry.name in header or entry.name == "__metadata__":
            raise UsageError(f"{filename}: two entries would be named {entry.name!r}; rename one of the tensors")
        offsets = [begin, begin + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype.upper(), "shape": list(entry.shape), "data_offsets": offsets}
        begin += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise UnsupportedError(
            f"{filename} would need a header of {len(text)} bytes; safetensors allows {HEADER_LIMIT}: "
            "write several files, with --max-shard-size"
        )
    head = len(text).to_bytes(8, "little") + text
    regions, offset = [], len(head)
    for entry in entries:
        regions.append(Region(entry.tensor, entry.part, offset, entry.nbytes))
        offset += entry.nbytes
    return FileLayout(filename, head, tuple(regions), offset)


def safetensors_files(
    parts: Sequence[Entry],
    metadata: Callable[[Sequence[Entry]], Mapping[str, str]],
    *,
    max_shard_bytes: int | None = None,
    shard_metadata: Mapping[str, str] | None = None,
) -> tuple[list[FileLayout], bytes | None]:
    """One file, "model.safetensors", or several files and the bytes of their index file (`INDEX_NAME`).

    parts: in order; the parts of one tensor must be neighbours and stay in one file
    metadata: entries of a file -> its metadata
    max_shard_bytes: maximum size of the data in a file; a larger tensor gets its own file. None: one file.
    shard_metadata: further metadata of each file, if there are several
    """
    shards = _split(parts, max_shard_bytes)
    if len(shards) == 1:
        return [safetensors_layout("model.safetensors", metadata(shards[0]), shards[0])], None
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    further = shard_metadata or {}
    layouts = [
        safetensors_layout(name, {**metadata(shard), **further}, shard)
        for name, shard in zip(names, shards, strict=True)
    ]
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in parts)},
        "weight_map": {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard},
    }
    return layouts, (json.dumps(index, indent=2) + "\n").encode()


def _split(parts: Sequence[Entry], limit: int | None) -> list[list[Entry]]:
    """Split between tensors, as late as the limit allows. Returns at least one shard."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    tensors: dict[str, list[Entry]] = {}
    for entry in parts:
        tensors.setdefault(entry.tensor, []).append(entry)
    for entries in tensors.values():
        size = sum(entry.nbytes for entry in entries)
        if limit is not None and shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1] += entries
        filled += size
    return shards


def _itemsize(entry: Entry) -> int:
    name = entry.dtype.upper()
    if name not in DTYPES:
        raise UsageError(f"{entry.name}: safetensors has no dtype {entry.dtype!r}; known: {', '.join(DTYPES)}")
    return DTYPES.width(name)

"""Files of a safetensors folder: the entries of tensors in one or several parts, the manifest, and shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import JSON_KEY, SET_KEY, Manifest, set_id, to_json
from bitsmith.containers.safetensors_header import dtype_name
from bitsmith.containers.safetensors_layout import INDEX_NAME, Entry, safetensors_files
from bitsmith.quant.tensor import TensorInfo


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to write: a plain one ("f32", "f16", "bf16" or another safetensors dtype; one part, "data"), or several
    parts.

    parts: shape and dtype of each part; not used for a plain tensor
    names: entry name by part; not used for a float, and empty for any plain tensor: its entry has the tensor's name
    """

    info: TensorInfo
    parts: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    names: Mapping[str, str]

    def entries(self) -> list[Entry]:
        """Its safetensors entries, in the order of its parts."""
        name = self.info.name
        if self.info.layout in WRITTEN_FLOATS or not self.names:
            return [Entry(name, "data", name, self.info.layout, self.info.shape)]
        return [
            Entry(name, part, self.names[part], dtype_name(dtype), shape) for part, (shape, dtype) in self.parts.items()
        ]


def module_names(name: str, parts: Mapping[str, object]) -> dict[str, str]:
    """Entry names of a weight "MODULE.weight": "MODULE.PART" by part."""
    module = name.removesuffix(".weight")
    return {part: f"{module}.{part}" for part in parts}


def folder_files(
    tensors: Sequence[StoredTensor],
    manifest: Manifest,
    *,
    metadata: Callable[[Sequence[TensorInfo]], Mapping[str, str]] = lambda infos: {},
    max_shard_bytes: int | None = None,
) -> tuple[list[FileLayout], dict[str, bytes]]:
    """Layouts of the files that hold `tensors` in this order, and the index file by name (none for one file).

    metadata: tensors of a file -> further entries of its `__metadata__`
    Each file holds the manifest records of its own tensors, and each of several files the set's identifier. Offsets
    depend only on the manifest's length, so a placeholder manifest gives the final sizes.
    Raises UsageError if two entries would have the same name.
    """
    known = {tensor.info.name: tensor.info for tensor in tensors}
    records = {record.name: record for record in manifest.tensors}

    def header(entries: Sequence[Entry]) -> dict[str, str]:
        infos = [known[name] for name in dict.fromkeys(entry.tensor for entry in entries)]
        own = tuple(records[info.name] for info in infos if info.name in records)
        return {
            "format": "pt",  # transformers requires it
            JSON_KEY: to_json(Manifest(manifest.version, manifest.recipe, own, manifest.settings)),
            **metadata(infos),
        }

    entries = [entry for tensor in tensors for entry in tensor.entries()]
    layouts, index = safetensors_files(
        entries, header, max_shard_bytes=max_shard_bytes, shard_metadata={SET_KEY: set_id(manifest)}
    )
    return layouts, {} if index is None else {INDEX_NAME: index}

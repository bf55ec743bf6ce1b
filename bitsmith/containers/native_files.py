"""The files of the native container: safetensors with their manifest, sharded where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.layout import FileLayout
from bitsmith.containers.native import LAYOUT_PREFIX, metadata
from bitsmith.containers.safetensors_header import dtype_name
from bitsmith.containers.safetensors_layout import INDEX_NAME, Entry, safetensors_files
from bitsmith.manifest import JSON_KEY, Manifest, to_json
from bitsmith.tensor import TensorInfo


@dataclass(frozen=True)
class NativeTensor:
    """A tensor to be written: a float ("f32", "f16", "bf16"; one part, "data") or "bitsmith/<format>".

    parts: of a quantized one, `NativeCodec.layout(info.shape)`
    """

    info: TensorInfo
    parts: Mapping[str, tuple[tuple[int, ...], np.dtype]]

    def entries(self) -> list[Entry]:
        """Its safetensors entries: under its own name, or one a part under NAME.PART."""
        name = self.info.name
        if not self.info.layout.startswith(LAYOUT_PREFIX):
            return [Entry(name, "data", name, self.info.layout, self.info.shape)]
        return [
            Entry(name, part, f"{name}.{part}", dtype_name(dtype), shape) for part, (shape, dtype) in self.parts.items()
        ]


def native_files(
    tensors: Sequence[NativeTensor], manifest: Manifest, *, max_shard_bytes: int | None = None
) -> tuple[list[FileLayout], dict[str, bytes]]:
    """Layouts of the files that hold `tensors` in that order, and the index file by name (none for one file).

    Each file carries the records of its own tensors. Offsets depend on the manifest's length only, so one of
    placeholders gives the sizes of the final one.
    Raises UsageError where two entries would have one name.
    """
    layouts_of = {tensor.info.name: tensor.info for tensor in tensors}
    records = {record.name: record for record in manifest.tensors}

    def header(entries: Sequence[Entry]) -> dict[str, str]:
        infos = [layouts_of[name] for name in dict.fromkeys(entry.tensor for entry in entries)]
        own = tuple(records[info.name] for info in infos if info.name in records)
        quantized = {
            info.name: (info.layout.removeprefix(LAYOUT_PREFIX), info.shape)
            for info in infos
            if info.layout.startswith(LAYOUT_PREFIX)
        }
        return {
            "format": "pt",  # transformers asks for it
            JSON_KEY: to_json(Manifest(manifest.version, manifest.recipe, own)),
            **(metadata(quantized) if quantized else {}),
        }

    entries = [entry for tensor in tensors for entry in tensor.entries()]
    layouts, index = safetensors_files(entries, header, max_shard_bytes=max_shard_bytes)
    return layouts, {} if index is None else {INDEX_NAME: index}

"""The native container's files: their metadata, and the position of every byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.hf_files import StoredTensor, folder_files
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.manifest import Manifest
from bitsmith.containers.native import LAYOUT_PREFIX, metadata
from bitsmith.quant.tensor import TensorInfo


@dataclass(frozen=True)
class NativeTensor:
    """A tensor to write: a plain one ("f32", "f16", "bf16", "i64"; one part, "data") or "bitsmith/<format>".

    parts: for a quantized tensor `NativeCodec.layout(info.shape)`; its entries are named NAME.PART
    """

    info: TensorInfo
    parts: Mapping[str, tuple[tuple[int, ...], np.dtype]]


def native_files(
    tensors: Sequence[NativeTensor], manifest: Manifest, *, max_shard_bytes: int | None = None
) -> tuple[list[FileLayout], dict[str, bytes]]:
    """`folder_files` for native tensors; each file's metadata gives the format and shape of its weights."""

    def native_metadata(infos: Sequence[TensorInfo]) -> Mapping[str, str]:
        quantized = {
            info.name: (info.layout.removeprefix(LAYOUT_PREFIX), info.shape)
            for info in infos
            if info.layout.startswith(LAYOUT_PREFIX)
        }
        return metadata(quantized) if quantized else {}

    stored = [
        StoredTensor(
            t.info,
            t.parts,
            {part: f"{t.info.name}.{part}" for part in t.parts} if t.info.layout.startswith(LAYOUT_PREFIX) else {},
        )
        for t in tensors
    ]
    return folder_files(stored, manifest, metadata=native_metadata, max_shard_bytes=max_shard_bytes)

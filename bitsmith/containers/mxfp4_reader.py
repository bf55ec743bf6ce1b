"""Reads MXFP4 stacks as gpt-oss ships them: "NAME_blocks" and "NAME_scales" (OCP Microscaling Formats v1.0).

A byte holds two E2M1 values, the first in the low nibble; 32 weights of a row share an E8M0 scale. Rows are outputs, as
in every matrix here, though transformers shows such a tensor transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsmith.containers.composite import CompositeTensor, Entries, fold
from bitsmith.containers.floats import MXFP4_STACK
from bitsmith.errors import UnsupportedError
from bitsmith.quant.formats.microscale import MXFP4, MicroScaled
from bitsmith.quant.tensor import QuantTensor, TensorInfo

_BLOCKS, _SCALES = "_blocks", "_scales"
_WIDTH = 32  # weights that share a scale
# the place of each pattern (sign and magnitude) among the codes, which go from -6 up to 6
_CODES = np.array([8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 4, 3, 2, 1, 0], np.uint8)


@dataclass(frozen=True)
class Mxfp4Codec:
    """Bytes [matrices, rows, blocks, 16] and scales [matrices, rows, blocks]. Only reading is supported."""

    @property
    def name(self) -> str:
        """The layout's name."""
        return MXFP4_STACK

    @property
    def format(self) -> MicroScaled:
        """ggml's MXFP4 has the same values."""
        return MXFP4

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """See `Codec.layout`."""
        if len(shape) < 2 or shape[-1] % _WIDTH:
            raise UnsupportedError(f"MXFP4 rows are whole blocks of {_WIDTH} weights")
        blocks = (*shape[:-1], shape[-1] // _WIDTH)
        return {"blocks": ((*blocks, _WIDTH // 2), np.dtype(np.uint8)), "scales": (blocks, np.dtype(np.uint8))}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Not supported: GGUF files hold MXFP4."""
        raise UnsupportedError(f"{self.name} is only read; write a GGUF file")

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """See `Codec.decode`."""
        packed = parts["blocks"]
        nibbles = np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), cols)
        return QuantTensor(self.format, _CODES[nibbles], {"e": np.ascontiguousarray(parts["scales"])})


def fold_mxfp4(folder: Path, entries: Entries) -> Iterator[CompositeTensor]:
    """The MXFP4 stacks of a checkpoint. Raises FileError if a stack and its scales contradict each other."""
    for name, (_, entry) in entries.items():
        stem = name.removesuffix(_BLOCKS)
        scales = stem + _SCALES
        sound = entry.dtype == "U8" and len(entry.shape) == 4 and entry.shape[-1] == _WIDTH // 2
        if stem == name or scales not in entries or not sound:
            continue
        shape = (*entry.shape[:2], entry.shape[2] * _WIDTH)
        info = TensorInfo(stem, shape, MXFP4_STACK, 0)
        yield fold(folder, Mxfp4Codec(), info, {"blocks": name, "scales": scales}, entries, said_by=name)

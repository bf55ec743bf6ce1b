"""The seams of every container: where tensors are read from, how one tensor's bytes are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitsmith.tensor import PackedTensor, QuantTensor, TensorInfo


class Source(Protocol):
    """An opened checkpoint file or folder. Opening validates every header and offset; data is read on demand.

    tensors: by the name the file gives them, in file order
    metadata: GGUF key-values, or the safetensors `__metadata__`
    files: the files the tensors lie in
    """

    @property
    def path(self) -> Path: ...
    @property
    def files(self) -> tuple[Path, ...]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...

    def packed(self, name: str, start: int = 0, stop: int | None = None) -> PackedTensor:
        """Rows start..stop of a tensor's stored bytes, copied into fresh buffers (no mapped pages are kept)."""
        ...

    def decode(self, packed: PackedTensor) -> np.ndarray:
        """What `packed` gave, as float32 [rows, cols]."""
        ...

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop decoded: float32 [stop - start, cols]. A vector is one row."""
        ...


class Codec(Protocol):
    """One tensor layout of one container: codes and parameters <-> bytes. Quirks of a layout live here only."""

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part. Raises UnsupportedError where the shape is impossible."""
        ...

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        ...

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows."""
        ...

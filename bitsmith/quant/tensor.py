"""Tensors as values: their description in a file, their unpacked codes, their packed bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from bitsmith.quant.formats.base import Format, Params
    from bitsmith.quant.grid import Array


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a container: sizes are known before any work starts.

    shape: row-major as in numpy and safetensors, [..., cols]; GGUF's reversed order is undone on reading
    layout: layout of the bytes: a float type ("f32", "f16", "bf16"), a ggml type ("q4_k"), or
        "bitsmith/<format>" for the native container
    nbytes: bytes of data in the file, padding excluded
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    nbytes: int

    @property
    def rows(self) -> int:
        """Rows of the matrix view: all leading dimensions; 1 for a vector or a scalar."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else 1

    @property
    def cols(self) -> int:
        """Length of a row; 1 for a scalar."""
        return self.shape[-1] if self.shape else 1

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.rows * self.cols


@dataclass(frozen=True)
class QuantTensor:
    """Unpacked codes with the parameters of their grid, for one slab or one tensor.

    codes: [rows, cols] uint8
    params: arrays in stored precision, see `Format.params_layout`
    """

    format: Format
    codes: Array
    params: Params

    def rows(self, at: slice) -> QuantTensor:
        """Some of the rows."""
        return QuantTensor(self.format, self.codes[at], {name: values[at] for name, values in self.params.items()})

    def values(self) -> Array:
        """Decode to float32 [rows, cols]."""
        return self.format.grid(self.params).values(self.codes)


@dataclass(frozen=True)
class PackedTensor:
    """A read-only view of a container's bytes.

    parts: by name; single-buffer layouts (floats, ggml types) have one part, "data", as uint8
        [rows, bytes per row]; native layouts have "codes" and one part per parameter
    """

    layout: str
    shape: tuple[int, ...]
    parts: Mapping[str, np.ndarray]

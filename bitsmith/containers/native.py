"""The native container's tensors: any format as packed codes and one array per parameter.

A weight T becomes several entries of a safetensors file: T.codes, uint8 [..., bytes per row], packed as in
`bitsmith.quant.bits`, and T.<parameter> for each parameter, [..., per row]. The file's `__metadata__` gives the format
of each weight, see `metadata`. Formats with their own bit patterns (FP8's bytes, bitsandbytes' FP4 nibbles) are stored
in those patterns, all others as codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.container import Container
from bitsmith.containers.patterns import from_patterns, to_patterns
from bitsmith.errors import UnsupportedError
from bitsmith.quant.bits import pack, packed_bytes, unpack
from bitsmith.quant.formats.base import Format, check_row
from bitsmith.quant.formats.precision import UINT8, as_numpy
from bitsmith.quant.tensor import QuantTensor

CODES = "codes"
LAYOUT_PREFIX = "bitsmith/"  # in `TensorInfo.layout`, before the format's name
TENSORS_KEY = "bitsmith.tensors"
SHAPES_KEY = "bitsmith.shapes"


@dataclass(frozen=True)
class NativeCodec:
    """Codes and parameters of one format <-> parts of the native container."""

    format: Format

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part of a weight of `shape`, [..., cols]; "codes" first.

        Raises UnsupportedError for a scalar, and if the format cannot divide the row.
        """
        if not shape:
            raise UnsupportedError(f"a scalar cannot be stored as {self.format.name}; leave it in f32")
        lead, cols = shape[:-1], check_row(self.format.name, shape[-1], self.format.multiple)
        params = self.format.params_layout(math.prod(lead), cols)
        parts = {name: ((*lead, *stored[1:]), dtype) for name, (stored, dtype) in params.items()}
        return {CODES: ((*lead, packed_bytes(cols, self.format.bits)), UINT8), **parts}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows, each a numpy array [rows, ...]."""
        codes = to_patterns(as_numpy(tensor.codes), self.format)
        layout = self.format.params_layout(*codes.shape)
        params = {
            name: np.ascontiguousarray(as_numpy(tensor.params[name]), dtype) for name, (_, dtype) in layout.items()
        }
        return {CODES: pack(codes, self.format.bits), **params}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for a pattern that means no value."""
        codes = from_patterns(unpack(parts[CODES], self.format.bits, cols), self.format)
        return QuantTensor(self.format, codes, {name: parts[name] for name in parts if name != CODES})


def metadata(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """Entries of a file's `__metadata__` for its weights, name -> (format name, shape), as two JSON objects.

    "bitsmith.tensors" maps weights to formats. "bitsmith.shapes" maps them to shapes, because padding hides a row's
    length.
    """
    formats = {name: format for name, (format, _) in tensors.items()}
    shapes = {name: list(shape) for name, (_, shape) in tensors.items()}
    return {
        TENSORS_KEY: json.dumps(formats, separators=(",", ":")),
        SHAPES_KEY: json.dumps(shapes, separators=(",", ":")),
    }


CONTAINER = Container("native", NativeCodec)

"""The native container's tensors: any format as packed codes and one array a parameter.

A weight T of a safetensors file becomes the entries T.codes, uint8 [..., bytes per row], packed as in
`bitsmith.bits`, and T.<parameter> for each parameter, [..., per row]. The file's `__metadata__` names the format of
each weight, see `metadata`. Formats with patterns of their own (FP8's bytes, bitsandbytes' FP4 nibbles) are stored in
those patterns, all others as codes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bitsmith.bits import pack, packed_bytes, unpack
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.formats.base import Format, check_row
from bitsmith.formats.codebook import Codebook, DoublyQuantized
from bitsmith.formats.precision import UINT8, as_numpy
from bitsmith.formats.tensorwide import TensorWide
from bitsmith.tensor import QuantTensor

CODES = "codes"
LAYOUT_PREFIX = "bitsmith/"  # of `TensorInfo.layout`, before the format's name
TENSORS_KEY = "bitsmith.tensors"
SHAPES_KEY = "bitsmith.shapes"


@dataclass(frozen=True)
class NativeCodec:
    """Codes and parameters of one format <-> parts of the native container."""

    format: Format

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part of a weight of `shape`, [..., cols]; "codes" first.

        Raises UnsupportedError for a scalar and where the format cannot divide the row.
        """
        if not shape:
            raise UnsupportedError(f"a scalar cannot be stored as {self.format.name}; leave it in f32")
        lead, cols = shape[:-1], check_row(self.format.name, shape[-1], self.format.multiple)
        params = self.format.params_layout(math.prod(lead), cols)
        parts = {name: ((*lead, *stored[1:]), dtype) for name, (stored, dtype) in params.items()}
        return {CODES: ((*lead, packed_bytes(cols, self.format.bits)), UINT8), **parts}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows, each [rows, ...]; numpy arrays, wherever the codes came from."""
        codes = as_numpy(tensor.codes)
        patterns = _patterns(self.format)
        if patterns is not None:
            codes = patterns[0][codes]
        layout = self.format.params_layout(*codes.shape)
        params = {
            name: np.ascontiguousarray(as_numpy(tensor.params[name]), dtype) for name, (_, dtype) in layout.items()
        }
        return {CODES: pack(codes, self.format.bits), **params}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for a pattern that means no value."""
        codes = unpack(parts[CODES], self.format.bits, cols)
        patterns = _patterns(self.format)
        if patterns is not None:
            found = patterns[1][codes]
            if found.size and found.min() < 0:
                row, column = np.argwhere(found < 0)[0]
                raise TensorError(
                    f"{self.format.name} has no value for the pattern {codes[row, column]:#04x} (NaN) at row {row}, "
                    f"column {column}; the file is damaged or was written by something else: make it again"
                )
            codes = found.astype(np.uint8)
        return QuantTensor(self.format, codes, {name: parts[name] for name in parts if name != CODES})


def metadata(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """What a file's `__metadata__` must say of its weights: name -> (format name, shape), as two JSON objects.

    "bitsmith.tensors" maps weights to formats, "bitsmith.shapes" to shapes (padding hides a row's length).
    """
    formats = {name: format for name, (format, _) in tensors.items()}
    shapes = {name: list(shape) for name, (_, shape) in tensors.items()}
    return {
        TENSORS_KEY: json.dumps(formats, separators=(",", ":")),
        SHAPES_KEY: json.dumps(shapes, separators=(",", ":")),
    }


def _patterns(format: Format) -> tuple[np.ndarray, np.ndarray] | None:
    """Tables from code to stored pattern (uint8) and back (int16, -1 where there is none); None: the code itself."""
    if isinstance(format, TensorWide):
        return _patterns(format.row)
    if isinstance(format, DoublyQuantized):
        return _patterns(format.plain)
    if not isinstance(format, Codebook) or format.patterns == tuple(range(1 << format.bits)):
        return None
    return _tables(format)


@lru_cache
def _tables(codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    back = np.full(1 << codebook.bits, -1, np.int16)
    back[list(codebook.patterns)] = np.arange(len(codebook.patterns))
    for pattern, code in codebook.aliases:
        back[pattern] = code
    return np.array(codebook.patterns, np.uint8), back

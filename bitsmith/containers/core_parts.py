"""Stored weights to the parts of a tensor in one call of the C++ core: NF4, FP4 and row-wise int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.containers.bnb_codecs import FourBitCodec, RowInt8Codec
from bitsmith.containers.native import CODES, NativeCodec
from bitsmith.quant.formats.core_absmax import READ, Rounded, codebook_codes, row_codes
from bitsmith.quant.formats.fourbit import FourBit
from bitsmith.quant.formats.nested import Nested
from bitsmith.quant.scale_search import F16_MAX


@dataclass(frozen=True)
class Parts:
    """Encoded rows: parts as the codec's `encode` gives them, and sums over all weights, float64."""

    parts: dict[str, np.ndarray]
    squared_error: float
    squared_weight: float


def encode_parts(codec: object, layout: str, data: np.ndarray, *, order: np.ndarray | None = None) -> Parts | None:
    """Rows of stored weights, uint8 [rows, bytes], with nearest codes; bit-equal to `nearest` and the codec.

    order: int64 [rows], the number of the source row for each output row
    Returns None if the core cannot do it, or found a weight that is not finite or beyond float16.
    """
    if layout not in READ:
        return None
    if isinstance(codec, FourBitCodec):
        settled = codec.format.settled_params if isinstance(codec.format, Nested) else None
        if isinstance(codec.format, Nested) and settled is None:
            return None
        scales = None if settled is None else np.ascontiguousarray(settled["scale"])
        found = codebook_codes(codec.plain, data, layout, packed=True, order=order, scales=scales)
        return None if found is None else _checked(found, codec.parts_of(found.out.reshape(-1, 1), found.absmax))
    if isinstance(codec, NativeCodec) and isinstance(codec.format, FourBit):
        found = codebook_codes(codec.format, data, layout, packed=True, order=order)
        if found is None:
            return None
        return _checked(found, {CODES: found.out >> 4 | found.out << 4, "scale": found.absmax})
    if isinstance(codec, RowInt8Codec):
        found = row_codes(data, layout, order=order)
        return None if found is None else _checked(found, codec.parts_of(found.out, found.absmax))
    return None


def _checked(found: Rounded, parts: dict[str, np.ndarray]) -> Parts | None:
    return Parts(parts, found.squared_error, found.squared_weight) if found.largest <= F16_MAX else None

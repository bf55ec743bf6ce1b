"""Stored weights to ggml blocks in one call of the C++ core, which checks, fits, rounds, packs and compares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.containers.gguf.blocks_simple import BlockCodec
from bitsmith.containers.gguf.types import TYPES
from bitsmith.quant.book_search import book_quantizer
from bitsmith.quant.formats.base import ReferenceCoded
from bitsmith.quant.formats.code_books import CodeBookFormat
from bitsmith.quant.formats.core_fit import quantizer
from bitsmith.quant.scale_search import F16_MAX, column_weights

_READ = {"f32": 4, "f16": 2, "bf16": 2}  # bytes of a weight, by the layouts that the core reads


@dataclass(frozen=True)
class Blocks:
    """Encoded rows.

    data: uint8 [rows, row bytes]
    squared_error, squared_weight: sums over all weights, float64
    """

    data: np.ndarray
    squared_error: float
    squared_weight: float


def encode_stored(
    codec: object,
    layout: str,
    data: np.ndarray,
    *,
    importance: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> Blocks | None:
    """Rows of stored weights as ggml blocks, bit-equal to `nearest` and the codec.

    layout: layout of `data`, uint8 [rows, bytes per row]
    importance: see `Format.fit`
    order: int64 [rows], the number of the source row for each output row
    Returns None if the core is missing, does not support the codec or layout, or found a weight that is not finite or
    beyond float16. The caller then uses the numpy code. Raises TensorError for an invalid importance.
    """
    if not isinstance(codec, BlockCodec) or layout not in _READ or not data.size:
        return None
    chosen, books = quantizer(codec.format), None
    if isinstance(codec.format, CodeBookFormat):
        books = book_quantizer(codec.format)
    if chosen is None and books is None:
        return None
    rows, cols = data.shape[0], data.shape[1] // _READ[layout]
    out = np.empty((rows, TYPES[codec.name].row_bytes(cols)), np.uint8)
    data, columns = np.ascontiguousarray(data), column_weights(importance)
    if books is not None:
        largest, squared_error, squared_weight = books.encode(data, layout, columns=columns, order=order, out=out)
    else:
        assert chosen is not None
        reference = importance is None and isinstance(codec.format, ReferenceCoded)
        largest, squared_error, squared_weight = chosen.encode(
            data, layout, columns=columns, order=order, reference=reference, out=out
        )
    return Blocks(out, squared_error, squared_weight) if largest <= F16_MAX else None

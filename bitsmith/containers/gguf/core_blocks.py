"""Stored weights to ggml blocks in one call of the C++ core, which checks, fits, rounds, packs and compares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.containers.gguf.blocks_simple import BlockCodec
from bitsmith.containers.gguf.types import TYPES
from bitsmith.quant.formats.base import ReferenceCoded
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
    chosen = quantizer(codec.format)
    if chosen is None:
        return None
    rows, cols = data.shape[0], data.shape[1] // _READ[layout]
    out = np.empty((rows, TYPES[codec.name].row_bytes(cols)), np.uint8)
    largest, squared_error, squared_weight = chosen.encode(
        np.ascontiguousarray(data),
        layout,
        columns=column_weights(importance),
        order=order,
        reference=importance is None and isinstance(codec.format, ReferenceCoded),
        out=out,
    )
    return Blocks(out, squared_error, squared_weight) if largest <= F16_MAX else None

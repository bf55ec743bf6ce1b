"""Rounding errors: what each type makes of each matrix."""

from __future__ import annotations

import numpy as np

from bitsmith.containers.floats import decode_numbers, encode_float
from bitsmith.containers.gguf.blocks_simple import BlockCodec
from bitsmith.containers.gguf.core_blocks import encode_stored
from bitsmith.quant.formats.base import NeedsExtent, Settled
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.recipe.plan import PlannedTensor


def rounded(w: np.ndarray, planned: PlannedTensor, importance: np.ndarray | None = None) -> np.ndarray:
    """The matrix float32 [rows, cols] as the file of `planned` would hold it, decoded.

    importance: [cols] float32 or None, see `Format.fit`
    """
    format, codec = planned.format, planned.codec
    if format is None:
        return np.asarray(decode_numbers(planned.info.layout, encode_float(planned.info.layout, w))).reshape(w.shape)
    if isinstance(codec, BlockCodec):
        stored = encode_stored(codec, "f32", np.ascontiguousarray(w).view(np.uint8), importance=importance)
        if stored is not None:
            return np.asarray(codec.decode({"data": stored.data}, w.shape[1]).values())
    if isinstance(format, NeedsExtent):
        format = format.with_extent(float(w.min()), float(w.max()))
    codes, params = nearest(w, format, importance)
    if isinstance(format, Settled):
        params = format.settled(params)
        codes = format.grid(params).nearest(w)
    return np.asarray(format.grid(params).values(codes))

"""Bytes of ggml's block types: codes and parameters <-> rows of blocks, and decoding of all types that hold weights.

Layouts: ggml-common.h and `dequantize_row_*` in ggml-quants.c of llama.cpp. All types have a codec in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitsmith.containers.container import Container
from bitsmith.containers.floats import NUMBERS, decode_numbers
from bitsmith.containers.gguf.blocks_books import BOOK_CODECS
from bitsmith.containers.gguf.blocks_few import FEW_CODECS
from bitsmith.containers.gguf.blocks_k import K_CODECS
from bitsmith.containers.gguf.blocks_simple import SIMPLE_CODECS, BlockCodec
from bitsmith.containers.gguf.types import TYPES
from bitsmith.errors import FileError, UnsupportedError

CODECS: Mapping[str, BlockCodec] = {**SIMPLE_CODECS, **K_CODECS, **FEW_CODECS, **BOOK_CODECS}


def decode_rows(type_name: str, data: np.ndarray, cols: int) -> np.ndarray:
    """Decode rows of a ggml type: uint8 [rows, bytes per row] -> float32 [rows, cols].

    Bit-equal to llama.cpp's `dequantize_row_*`. An infinite or NaN scale gives infinite or NaN weights (the NaN
    pattern is not specified). The scale 255 of MXFP4 is NaN in its specification, but 2^127 here as in llama.cpp.
    f64, i32 and i64 are rounded to float32.

    Raises UnsupportedError for a type that holds no weights or an impossible row length, FileError if the bytes of a
    row do not match `cols`.
    """
    kind = TYPES.get(type_name)
    if kind is None or not (type_name in NUMBERS or type_name in CODECS):
        known = ", ".join([*NUMBERS, *CODECS])
        raise UnsupportedError(f"ggml type {type_name!r} holds no weights that can be read; readable types: {known}")
    expected = kind.row_bytes(cols)
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] != expected:
        raise FileError(
            f"rows of {cols} {type_name} weights take {expected} bytes each (uint8 [rows, {expected}]), but found "
            f"{data.dtype} {list(data.shape)}; the file's tensor shape and size disagree"
        )
    if type_name in NUMBERS:
        return decode_numbers(type_name, data)
    with np.errstate(invalid="ignore", over="ignore"):
        values = CODECS[type_name].decode({"data": data}, cols).values()
    assert isinstance(values, np.ndarray)
    return values


CONTAINER = Container(
    "gguf", lambda format: CODECS.get(format.name), is_folder=False, runtimes=frozenset({"llama.cpp"})
)

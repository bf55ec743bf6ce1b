"""llama.cpp's own quantization functions, called through ctypes on the shared object of the xllamacpp wheel.

Facts of the C interface: ggml.h and ggml-quants.h. Nothing here is used by the package.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from bitsmith.containers.gguf.types import TYPES

SYMBOLS = {name: name.replace("_k", "_K") if name.endswith("_k") else name for name in TYPES}


@cache
def library() -> ctypes.CDLL:
    """The loaded shared object, its quantization tables initialised."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    lib = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    lib.ggml_quantize_init.argtypes = [ctypes.c_int]
    lib.ggml_quantize_init.restype = None
    return lib


def quantize(name: str, w: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """`ggml_quantize_chunk`: float32 [rows, cols] -> uint8 [rows, row bytes]."""
    kind = TYPES[name]
    source = np.ascontiguousarray(w, np.float32)
    rows, cols = source.shape
    out = np.zeros((rows, kind.row_bytes(cols)), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    lib = library()
    lib.ggml_quantize_init(kind.number)
    written = lib.ggml_quantize_chunk(
        kind.number,
        source.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        cols,
        None if weights is None else weights.ctypes.data,
    )
    assert written == out.nbytes
    return out


def dequantize(name: str, data: np.ndarray, cols: int) -> np.ndarray:
    """`dequantize_row_*` over all rows: uint8 [rows, row bytes] -> float32 [rows, cols]."""
    source = np.ascontiguousarray(data)
    out = np.zeros((source.shape[0], cols), np.float32)
    function = getattr(library(), f"dequantize_row_{SYMBOLS[name]}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(source.ctypes.data, out.ctypes.data, out.size)
    return out


def floats_to(name: str, w: np.ndarray) -> np.ndarray:
    """llama.cpp's own rounding of float32 to "f16" or "bf16", as uint16 of the same shape."""
    source = np.ascontiguousarray(w, np.float32)
    out = np.zeros(source.shape, np.uint16)
    function = getattr(library(), "ggml_fp32_to_fp16_row" if name == "f16" else "ggml_fp32_to_bf16_row_ref")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(source.ctypes.data, out.ctypes.data, out.size)
    return out

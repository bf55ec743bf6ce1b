"""Layouts with one plain number per weight: floats, and the integers that GGUF files may hold."""

from __future__ import annotations

import numpy as np

from bitsmith.errors import UnsupportedError
from bitsmith.system.number_types import NumberTypes

NUMBERS = NumberTypes(
    {
        "f32": "<f4",
        "f16": "<f2",
        "bf16": "bfloat16",
        "f64": "<f8",
        "i8": "<i1",
        "i16": "<i2",
        "i32": "<i4",
        "i64": "<i8",
    }
)
WRITTEN_FLOATS = ("f32", "f16", "bf16")  # layouts of written weights that are not quantized
FLOATS = frozenset({*WRITTEN_FLOATS, "f64"})  # layouts of source weights that are not quantized

MXFP4_STACK = "mxfp4/blocks"  # layout of MXFP4 stacks, as gpt-oss is published
FP8_PREFIX = "fp8/"  # of layouts of FP8 weights with scales, as many models are published


def decode_numbers(name: str, data: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes per row] of one of NUMBERS -> float32 [rows, cols]; f64 beyond float32 becomes infinite."""
    data = np.ascontiguousarray(data)
    if name == "bf16":  # the upper half of a float32
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return data.view(NUMBERS[name]).astype(np.float32)


def encode_float(name: str, w: np.ndarray) -> np.ndarray:
    """Round to nearest even: float32 [rows, cols] -> uint8 [rows, bytes per row] of "f32", "f16" or "bf16".

    Magnitudes from 65520 on become infinite in float16. Raises UnsupportedError for other layouts.
    """
    if name not in WRITTEN_FLOATS:
        raise UnsupportedError(f"weights are stored as f32, f16 or bf16, not as {name}; choose one of these")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(w.astype(NUMBERS[name]))
    return stored.view(np.uint8)

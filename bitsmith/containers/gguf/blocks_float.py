"""Plain number types of GGUF: floats and integers, one number a weight."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from bitsmith.errors import UnsupportedError

FLOATS: dict[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f64": np.dtype("<f8"),
    "i8": np.dtype("<i1"),
    "i16": np.dtype("<i2"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
}


def decode_float(name: str, data: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes per row] -> float32 [rows, cols]; f64 beyond float32 becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(data).view(FLOATS[name]).astype(np.float32)


def encode_float(name: str, w: np.ndarray) -> np.ndarray:
    """Round to nearest even: float32 [rows, cols] -> uint8 [rows, bytes per row] of "f32", "f16" or "bf16".

    Values beyond float16 become infinite; `first_overflow` finds them. Raises UnsupportedError for other types.
    """
    if name not in ("f32", "f16", "bf16"):
        raise UnsupportedError(f"weights are stored as f32, f16 or bf16, not as {name}; choose one of these")
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.ascontiguousarray(w.astype(FLOATS[name]))
    return stored.view(np.uint8)


def first_overflow(w: np.ndarray) -> int | None:
    """Index (in reading order) of the first finite weight of `w`, float32, that float16 cannot hold; None if all fit.

    Magnitudes from 65520 on round to infinity.
    """
    over = np.isfinite(w) & (np.abs(w) >= 65520.0)
    index = int(np.argmax(over)) if over.size else 0
    return index if over.size and over.reshape(-1)[index] else None

"""ggml types that are only read: ternary, binary and vector-codebook families, which do not fit a `Grid`.

Layouts: ggml-common.h and `dequantize_row_*` in ggml-quants.c of llama.cpp. The `gguf` package decodes IQ1 to IQ3 and
TQ, bit-equal to llama.cpp. It is imported when the first such tensor is read.
"""

from __future__ import annotations

import numpy as np

VIA_GGUF = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0")
READ_ONLY = ("q1_0", "q2_0", *VIA_GGUF)

_Q1 = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
_Q2 = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])


def decode_read_only(name: str, data: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes per row], whole blocks -> float32 [rows, cols]; `name` is one of READ_ONLY."""
    if name == "q1_0":
        return _decode_q1(data)
    if name == "q2_0":
        return _decode_q2(data)
    from gguf import GGMLQuantizationType, quants

    values = quants.dequantize(np.ascontiguousarray(data), GGMLQuantizationType[name.upper()])
    return np.ascontiguousarray(values, np.float32)


def _decode_q1(data: np.ndarray) -> np.ndarray:
    """Blocks of 128 signs: a set bit is d, a clear bit is -d."""
    blocks = np.ascontiguousarray(data).reshape(-1).view(_Q1)
    d = blocks["d"].astype(np.float32)[:, None]
    positive = np.unpackbits(blocks["qs"], axis=1, bitorder="little").astype(bool)
    return np.where(positive, d, -d).reshape(data.shape[0], -1)


def _decode_q2(data: np.ndarray) -> np.ndarray:
    """Blocks of 64 two-bit codes, four per byte in order: value = (code - 1) d."""
    blocks = np.ascontiguousarray(data).reshape(-1).view(_Q2)
    d = blocks["d"].astype(np.float32)[:, None]
    codes = (blocks["qs"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return ((codes.astype(np.float32).reshape(-1, 64) - 1.0) * d).reshape(data.shape[0], -1)

"""Fallback types for rows that are not a whole number of blocks."""

from __future__ import annotations

from bitsmith.containers.gguf.types import TYPES

FALLBACKS: dict[str, str] = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    "q2_0": "q4_0",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
}


def divides(type_name: str, cols: int) -> bool:
    """Whether a row of `cols` weights is a whole number of blocks of the ggml type `type_name`."""
    return cols % TYPES[type_name].block == 0


def fit_to_row(type_name: str, cols: int) -> str:
    """The ggml type for rows of `cols` weights, if `type_name` is wanted.

    It is the type itself if its blocks divide the row, else its fallback with blocks of 32, else "f16"
    (llama-quantize build 11434, src/llama-quant.cpp).
    """
    if divides(type_name, cols):
        return type_name
    smaller = FALLBACKS.get(type_name, type_name)
    return smaller if divides(smaller, cols) else "f16"

"""Shared by the GPTQ, AWQ and compressed-tensors layouts: codes packed into 32-bit words, and names of layouts."""

from __future__ import annotations

import numpy as np

from bitsmith.errors import TensorError
from bitsmith.quant.bits import pack, unpack
from bitsmith.quant.formats.affine import Affine

WORD = np.dtype("<i4")


def word_count(count: int, bits: int) -> int:
    """Number of 32-bit words that hold `count` codes."""
    return -(-count * bits // 32)


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [rows, n] -> int32 [rows, word_count(n, bits)]: one bit string per row, lowest bit first.

    Padding is zero. Three-bit codes cross word borders: 32 codes take three words, as in AutoGPTQ.
    """
    packed = pack(codes, bits)
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    return np.ascontiguousarray(padded).view(WORD)


def unpack_words(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack_words`: int32 [rows, words] -> codes uint8 [rows, count]."""
    found = np.ascontiguousarray(words, WORD).view(np.uint8)
    return unpack(np.ascontiguousarray(found[:, : (count * bits + 7) // 8]), bits, count)


def layout_name(container: str, format: Affine, usual: str, *marks: str) -> str:
    """`TensorInfo.layout` of an integer format: "gptq/int4-g128", "gptq/int4-g64-asym-bf16-v2".

    usual: the usual precision of the container's scales, left out of the name
    marks: further parts of the name
    """
    scope = f"g{format.group}" if format.group else "channel"
    precision = format.precision or ("bf16" if format.group else "f32")
    parts = [f"int{format.bits}", scope, "asym" if format.asymmetric else "", "" if precision == usual else precision]
    return f"{container}/{'-'.join(part for part in (*parts, *marks) if part)}"


def checked_scale(scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Scales in their stored dtype, contiguous. Raises TensorError if float16 is too narrow for the weights.

    Formats saturate their scales. A scale at float16's largest value no longer covers its weights.
    """
    if dtype == np.float16 and scale.size and float(np.max(scale)) >= float(np.finfo(np.float16).max):
        raise TensorError(
            "the weights are so large that their scales overflow float16, which this container stores; write "
            "compressed/w4a16 from a bfloat16 model, or leave the tensor in 16 bits with --keep"
        )
    return np.ascontiguousarray(scale, dtype)

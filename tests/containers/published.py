"""The layouts of other tools' files, packed and unpacked by their published formulas, one number at a time."""

from __future__ import annotations

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """AutoGPTQ's `pack`, downwards: codes [n, columns] -> int32 [n * bits / 32, columns]."""
    n, columns = codes.shape
    wide = codes.astype(np.uint64)
    words = np.zeros((n * bits // 32, columns), np.uint64)
    if bits == 3:
        for start in range(0, n, 32):
            three = words[start // 32 * 3 : start // 32 * 3 + 3]
            for j in range(10):
                three[0] |= wide[start + j] << np.uint64(3 * j)
                three[1] |= wide[start + 11 + j] << np.uint64(3 * j + 1)
                three[2] |= wide[start + 22 + j] << np.uint64(3 * j + 2)
            three[0] |= (wide[start + 10] & np.uint64(3)) << np.uint64(30)
            three[1] |= wide[start + 10] >> np.uint64(2)
            three[1] |= (wide[start + 21] & np.uint64(1)) << np.uint64(31)
            three[2] |= wide[start + 21] >> np.uint64(1)
    else:
        per = 32 // bits
        for i in range(n):
            words[i // per] |= wide[i] << np.uint64(bits * (i % per))
    return words.astype(np.uint32).view(np.int32)


def awq_words(codes: np.ndarray) -> np.ndarray:
    """AutoAWQ's GEMM packing: codes [n, outputs] -> int32 [n, outputs / 8]."""
    n, outputs = codes.shape
    words = np.zeros((n, outputs // 8), np.uint64)
    for column in range(outputs // 8):
        for nibble, place in enumerate(AWQ_ORDER):
            words[:, column] |= codes[:, 8 * column + place].astype(np.uint64) << np.uint64(4 * nibble)
    return words.astype(np.uint32).view(np.int32)


def gptq_parts(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, index: np.ndarray, bits: int, *, shift: int
) -> dict[str, np.ndarray]:
    """A weight [out, in] as AutoGPTQ stores it. scale float16, zero uint8: [out, groups]; index: group by column."""
    return {
        "qweight": gptq_words(np.ascontiguousarray(codes.T), bits),
        "qzeros": np.ascontiguousarray(gptq_words(zero - shift, bits).T),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": index.astype(np.int32),
    }


def awq_parts(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> dict[str, np.ndarray]:
    """A weight [out, in] as AutoAWQ stores it."""
    return {
        "qweight": awq_words(np.ascontiguousarray(codes.T)),
        "qzeros": awq_words(np.ascontiguousarray(zero.T)),
        "scales": np.ascontiguousarray(scale.T),
    }


def values(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, index: np.ndarray) -> np.ndarray:
    """scale * (code - zero) in float64, by the group of each column."""
    decoded: np.ndarray = scale[:, index].astype(np.float64) * (codes.astype(np.float64) - zero[:, index])
    return decoded

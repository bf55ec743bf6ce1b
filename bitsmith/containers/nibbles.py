"""E2M1 codes as files outside of GGUF hold them: two a byte, the first in the low nibble, sign and magnitude."""

from __future__ import annotations

import numpy as np

# our codes go from -6 (0) over -0 (7) and +0 (8) up to 6 (15); files store the sign in the highest bit
_TO_SIGN = np.array([15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)
_FROM_SIGN = np.argsort(_TO_SIGN).astype(np.uint8)


def sign_magnitude(codes: np.ndarray) -> np.ndarray:
    """Codes uint8 -> the patterns in files, uint8 of the same shape."""
    patterns: np.ndarray = _TO_SIGN[codes]
    return patterns


def pack_e2m1(codes: np.ndarray) -> np.ndarray:
    """Codes uint8 [rows, cols] -> uint8 [rows, cols / 2]."""
    signed = sign_magnitude(codes)
    return np.ascontiguousarray(signed[:, ::2] | signed[:, 1::2] << 4)


def unpack_e2m1(packed: np.ndarray) -> np.ndarray:
    """The inverse: uint8 [rows, cols / 2] -> codes uint8 [rows, cols]."""
    nibbles = np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), 2 * packed.shape[1])
    return _FROM_SIGN[nibbles]

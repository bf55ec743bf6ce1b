"""Packing of codes: 1 to 8 bits each, rows padded to whole bytes.

Code i of a row occupies bits i * bits .. (i + 1) * bits - 1 of the row's bit string. Bit k of the string is bit k % 8
of byte k // 8, where bit 0 is the least significant. Padding bits are zero.
"""

from __future__ import annotations

import numpy as np

from bitsmith.errors import UsageError


def packed_bytes(cols: int, bits: int) -> int:
    """Bytes of a packed row of `cols` codes."""
    _check(bits)
    return (cols * bits + 7) // 8


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [rows, cols], each below 2**bits -> uint8 [rows, packed_bytes(cols, bits)].

    Raises UsageError for bits outside 1..8 and for a code that does not fit.
    """
    rows, cols = codes.shape
    width = packed_bytes(cols, bits)
    if codes.size and int(codes.max()) >> bits:
        raise UsageError(f"codes of {bits} bits must be below {1 << bits}; the largest code is {int(codes.max())}")
    if bits == 8:
        return codes.copy()
    if cols % 8:
        codes = np.pad(codes, ((0, 0), (0, -cols % 8)))
    eights = codes.reshape(rows, codes.shape[1] // 8, 8)
    packed = np.zeros((rows, eights.shape[1], bits), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        packed[:, :, byte] |= eights[:, :, i] << np.uint8(shift)
        if shift + bits > 8:
            packed[:, :, byte + 1] |= eights[:, :, i] >> np.uint8(8 - shift)
    return np.ascontiguousarray(packed.reshape(rows, eights.shape[1] * bits)[:, :width])


def unpack(packed: np.ndarray, bits: int, cols: int) -> np.ndarray:
    """The inverse of `pack`: uint8 [rows, packed_bytes(cols, bits)] -> codes uint8 [rows, cols].

    Raises UsageError for bits outside 1..8 and for rows of another width.
    """
    rows, width = packed.shape
    expected = packed_bytes(cols, bits)
    if width != expected:
        raise UsageError(f"{cols} codes of {bits} bits take {expected} bytes per row, found rows of {width} bytes")
    if bits == 8:
        return packed.copy()
    groups = -(-cols // 8)
    if width != groups * bits:
        packed = np.pad(packed, ((0, 0), (0, groups * bits - width)))
    packed = packed.reshape(rows, groups, bits)
    codes = np.empty((rows, groups, 8), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = packed[:, :, byte] >> np.uint8(shift)
        if shift + bits > 8:
            code |= packed[:, :, byte + 1] << np.uint8(8 - shift)
        codes[:, :, i] = code & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(codes.reshape(rows, groups * 8)[:, :cols])


def _check(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise UsageError(f"codes have 1 to 8 bits, not {bits}")

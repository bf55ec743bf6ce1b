"""Packing of codes is exact, tight and refuses what does not fit."""

import numpy as np
import pytest

from bitsmith.errors import UsageError
from bitsmith.quant.bits import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("cols", [0, 1, 5, 7, 8, 9, 64, 129])
def test_round_trip(bits: int, cols: int) -> None:
    codes = np.random.default_rng(bits * 1000 + cols).integers(0, 1 << bits, (5, cols), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (5, packed_bytes(cols, bits)) == (5, -(-cols * bits // 8))
    assert np.array_equal(unpack(packed, bits, cols), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_against_the_bit_string(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 21), dtype=np.uint8)
    strings = [sum(int(code) << (bits * i) for i, code in enumerate(row)) for row in codes]
    expected = [list(string.to_bytes(packed_bytes(21, bits), "little")) for string in strings]
    assert pack(codes, bits).tolist() == expected


def test_four_bits_low_nibble_first() -> None:
    assert pack(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]


def test_no_rows() -> None:
    assert unpack(pack(np.zeros((0, 13), np.uint8), 3), 3, 13).shape == (0, 13)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="below 8; the largest code is 8"):
        pack(np.array([[8]], np.uint8), 3)
    for bits in (0, 9):
        with pytest.raises(UsageError, match="1 to 8 bits"):
            pack(np.zeros((1, 8), np.uint8), bits)
    with pytest.raises(UsageError, match="take 3 bytes per row, found rows of 4"):
        unpack(np.zeros((1, 4), np.uint8), 3, 8)


def test_results_are_copies() -> None:
    codes = np.zeros((1, 8), np.uint8)
    packed = pack(codes, 8)
    packed[:] = 1
    assert not codes.any()

"""The table of E4M3 beside ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from bitsmith.quant.formats.e4m3 import e4m3_values


def test_all_bytes() -> None:
    expected = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(e4m3_values(), expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(e4m3_values())[numbers], np.signbit(expected)[numbers])

"""NF4 and FP4: bitsandbytes' tables, absmax, and absmax quantized in turn."""

import numpy as np
import pytest

from bitsmith.errors import UnsupportedError
from bitsmith.quant.formats.fourbit import DoublyQuantized, fp4, nf4
from bitsmith.quant.rounders.nearest import nearest
from tests.quant.formats.samples import check_both_libraries_and_rows, hostile

# frozen from bitsandbytes 0.50: functional.get_4bit_type and create_dynamic_map, as float32
BNB_NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
BNB_FP4 = [0, 0.0052083334, 0.6666667, 1, 0.33333334, 0.5, 0.16666667, 0.25]

FORMATS = [nf4(), fp4(), DoublyQuantized(nf4()), DoublyQuantized(fp4())]
NAMES = [format.name for format in FORMATS]


def test_nf4_table() -> None:
    assert np.array_equal(np.float32(nf4().table), np.float32(BNB_NF4))
    assert nf4().patterns == tuple(range(16))


def test_fp4_table_and_patterns() -> None:
    format = fp4()
    stored = dict(zip(format.patterns, np.float32(format.table), strict=True))
    assert np.allclose([stored[p] for p in range(8)], BNB_FP4, rtol=1e-7, atol=0)
    assert all(stored[p | 8] == -stored[p] for p in range(1, 8))
    assert stored[8] == 0.0
    assert list(format.table) == sorted(format.table)


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_hostile_weights(format: object) -> None:
    w = hostile()
    values = check_both_libraries_and_rows(format, w)
    error = np.abs(values.astype(np.float64) - w).reshape(-1, 64).max(1)
    assert (error <= np.abs(w).reshape(-1, 64).max(1) * 0.2 + 1e-40).all()  # the widest gap is about a third


@pytest.mark.parametrize("format", FORMATS[:2], ids=NAMES[:2])
def test_absmax_is_exact(format: object) -> None:
    w = hostile()
    codes, params = nearest(w, format)
    blocks = w.reshape(-1, 64)
    assert np.array_equal(params["scale"].reshape(-1), np.abs(blocks).max(1))
    values = format.grid(params).values(codes).reshape(-1, 64)
    at = np.abs(blocks).argmax(1)
    usual = np.abs(blocks).max(1) >= 1e-38  # bitsandbytes divides by no smaller absmax
    at, blocks, values = at[usual], blocks[usual], values[usual]
    assert len(at) > 4
    assert np.array_equal(values[np.arange(len(at)), at], blocks[np.arange(len(at)), at])


@pytest.mark.parametrize("format", FORMATS, ids=NAMES)
def test_importance_lowers_the_weighted_error(format: object) -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_t(4, (4, 512)).astype(np.float32)
    importance = (rng.random(512) ** 4).astype(np.float32)
    searched = check_both_libraries_and_rows(format, w, importance)
    plain = check_both_libraries_and_rows(format, w)
    assert ((searched - w) ** 2 * importance).sum() < 0.97 * ((plain - w) ** 2 * importance).sum()


def test_doubly_quantized_scales_are_close() -> None:
    rng = np.random.default_rng(6)
    w = rng.standard_normal((3, 64 * 300)).astype(np.float32)  # two super-blocks: 256 and 44 scales
    w[1, 70] = 100  # an outlier must not coarsen the scales beside it
    format = DoublyQuantized(nf4())
    assert format.params_layout(3, w.shape[1])["scale_mean"] == ((3, 2), np.dtype(np.float32))
    _, params = nearest(w, format)
    exact = nf4().fit(w)["scale"]
    close = format.grid(params).scale
    assert np.abs(close / exact - 1).max() < 0.05
    assert np.abs(close / exact - 1).mean() < 0.01
    assert close[1, 1] == pytest.approx(100, rel=0.01)


def test_doubly_quantized_equal_scales_are_exact() -> None:
    w = np.full((2, 256), 0.75, np.float32)
    for format in FORMATS:
        codes, params = nearest(w, format)
        assert np.array_equal(format.grid(params).values(codes), w)


def test_the_dynamic_map() -> None:
    """256 entries in -1..1; among them some of bitsandbytes' own values."""
    format = DoublyQuantized(nf4())
    one = {"scale_code": np.arange(256, dtype=np.uint8)[None], "scale_range": np.ones((1, 1), "f4")}
    scale = format.grid({**one, "scale_mean": np.full((1, 1), 2.0, np.float32)}).scale[0] - 2
    assert len(np.unique(scale)) > 240  # next to 2, float32 merges the smallest
    for value in (-0.99296874, -0.9789063, -0.00746875, 0.23359375, 0.99296874, 1.0, 0.0):
        assert np.abs(scale - value).min() < 3e-7


def test_rows_that_do_not_divide() -> None:
    for format in FORMATS:
        with pytest.raises(UnsupportedError, match=f"{format.name} needs rows whose length divides by 64"):
            format.params_layout(2, 96)

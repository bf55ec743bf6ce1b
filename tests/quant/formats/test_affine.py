"""Integer formats: absmax and min-max by definition, search with importance, extremes."""

import ml_dtypes
import numpy as np
import pytest

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.rounders.nearest import nearest
from tests.quant.formats.samples import check_both_libraries_and_rows, hostile

ALL = [Affine(bits, group, asym) for bits in (8, 4, 3, 2) for group in (32, 128, 0) for asym in (False, True)]
NAMES = [format.name for format in ALL]


@pytest.mark.parametrize("format", ALL, ids=NAMES)
def test_hostile_weights_round_within_half_a_step(format: Affine) -> None:
    w = hostile()
    values = check_both_libraries_and_rows(format, w)
    group = format.group or w.shape[1]
    blocks = w.reshape(len(w), -1, group).astype(np.float64)
    if format.asymmetric:
        reach = np.maximum(blocks.max(2), 0) - np.minimum(blocks.min(2), 0)
        step = reach / (2**format.bits - 1)
    else:
        step = np.abs(blocks).max(2) / (2 ** (format.bits - 1) - 1)
    worst = np.abs(values.reshape(blocks.shape) - blocks).max(2)
    # half a step, or a full one where min-max rounds its zero point; as much as a bfloat16 scale or saturation costs
    slack = 1.01 if format.asymmetric else 0.51
    assert (worst <= step * slack + np.abs(blocks).max(2) * 2.0**-7 + 1e-40).all()
    assert (values[2] == 0).all()


@pytest.mark.parametrize("format", ALL, ids=NAMES)
def test_importance_never_raises_the_weighted_error(format: Affine) -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_t(4, (6, 256)).astype(np.float32)
    importance = (rng.random(256) ** 4).astype(np.float32)
    importance[32:64] = 0
    searched = check_both_libraries_and_rows(format, w, importance)
    plain = check_both_libraries_and_rows(format, w)
    before = ((plain - w) ** 2 * importance).sum(dtype=np.float64)
    after = ((searched - w) ** 2 * importance).sum(dtype=np.float64)
    assert after <= before
    if format.bits < 8:
        assert after < 0.97 * before
    assert np.array_equal(check_both_libraries_and_rows(format, w, np.zeros(256, np.float32)), plain)


def test_the_search_survives_extremes() -> None:
    for bits in (8, 2):
        check_both_libraries_and_rows(Affine(bits, 64), hostile(), np.linspace(0, 1, 256, dtype=np.float32))


def test_absmax_by_hand() -> None:
    w = np.array([[1.75, -0.9, 0.25, -1.75] * 8], np.float32)
    codes, params = nearest(w, Affine(4, 32))
    assert params["scale"].tolist() == [[0.25]]
    assert (codes[0, :4].astype(int) - 8).tolist() == [7, -4, 1, -7]


def test_min_max_by_hand() -> None:
    w = np.array([[-1.0, 2.75, 0.0, 0.3] * 8], np.float32)
    codes, params = nearest(w, Affine(4, 32, asymmetric=True))
    assert params["scale"].tolist() == [[0.25]]
    assert params["zero"].tolist() == [[4]]
    assert codes[0, :4].tolist() == [0, 15, 4, 5]
    assert Affine(4, 32, asymmetric=True).grid(params).values(codes)[0, :4].tolist() == [-1.0, 2.75, 0.0, 0.25]


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_zero_is_always_a_value_of_min_max(bits: int) -> None:
    for low, high in [(1.0, 3.0), (-3.0, -1.0), (-0.1, 5.0)]:
        w = np.linspace(low, high, 256, dtype=np.float32)[None]
        for group in (0, 256):
            format = Affine(bits, group, asymmetric=True)
            _, params = nearest(w, format)
            assert 0.0 in format.grid(params).values((np.arange(256)[None] % 2**bits).astype(np.uint8))


def test_group_scales_are_bfloat16_and_row_scales_float32() -> None:
    layout = Affine(4, 128, asymmetric=True).params_layout(3, 256)
    assert layout == {"scale": ((3, 2), np.dtype(ml_dtypes.bfloat16)), "zero": ((3, 2), np.dtype(np.uint8))}
    assert Affine(4, 0).params_layout(3, 100) == {"scale": ((3, 1), np.dtype(np.float32))}


def test_rows_that_do_not_divide() -> None:
    for act in (lambda: Affine(4, 128).params_layout(2, 192), lambda: Affine(4, 128).fit(np.zeros((2, 192), "f4"))):
        with pytest.raises(UnsupportedError, match="int4-g128 needs rows whose length divides by 128; these have 192"):
            act()
    with pytest.raises(UnsupportedError, match="have 0 weights"):
        Affine(4, 0).params_layout(2, 0)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_one_scale_a_tensor(asymmetric: bool) -> None:
    w = hostile()[:6]
    format = TensorWide("int8-tensor", Affine(8, 0, asymmetric))
    with pytest.raises(UsageError, match="with_extent"):
        format.fit(w)
    check_both_libraries_and_rows(format, w)
    check_both_libraries_and_rows(format, hostile())
    _, params = nearest(w, format.with_extent(float(w.min()), float(w.max())))
    assert all(len(np.unique(p)) == 1 for p in params.values())
    assert format.with_extent(-1.0, 1.0) == format


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_lowest_level_goes_to_the_largest_weight_of_either_sign(bits: int) -> None:
    """Each group holds level -2^(b-1) exactly, once with a positive weight and once with a negative one."""
    levels = np.arange(-(1 << (bits - 1)), 1 << (bits - 1)).astype(np.float32)
    row = np.resize(levels, 64) * np.float32(0.25)
    w = np.stack([row, -row])
    format = Affine(bits, 64)
    params = format.fit(w, np.ones(64, np.float32))
    assert np.sign(np.asarray(params["scale"], np.float32))[:, 0].tolist() == [1.0, -1.0]
    grid = format.grid(params)
    np.testing.assert_array_equal(grid.values(grid.nearest(w)), w)
    absmax = format.fit(w)
    assert (np.asarray(absmax["scale"], np.float32) > 0).all()  # without importance: the usual rule


def test_scales_of_eight_bits_and_with_zero_points_have_no_sign() -> None:
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for format in (Affine(8, 64), Affine(2, 64, asymmetric=True)):
        assert (np.asarray(format.fit(w, np.ones(64, np.float32))["scale"], np.float32) > 0).all()

"""ggml formats: both array libraries alike, rows on their own, scales that importance improves."""

import numpy as np
import pytest

from bitsmith.errors import TensorError
from bitsmith.quant.formats.base import Format, ReferenceCoded, VectorFormat
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.scale_search import CHUNK, tree_sum
from tests.quant.formats.samples import check_both_libraries_and_rows, hostile

FORMATS = list(GGML_FORMATS.values())
SEARCHED = [f for f in FORMATS if f.name != "q8_0"]
K_TYPES = [f for f in FORMATS if f.multiple == 256]


def names(formats: list[Format]) -> list[str]:
    return [format.name for format in formats]


def weighted_error(format: Format, w: np.ndarray, importance: np.ndarray | None, counted: np.ndarray) -> float:
    params = format.fit(w, importance)
    grid = format.grid(params)
    codes = grid.nearest(w)
    if isinstance(format, VectorFormat):  # the nearest code of a vector depends on the weights of its columns
        codes, params = format.nearest(w, importance)
        grid = format.grid(params)
    return float((np.square(grid.values(codes) - w, dtype=np.float64) * counted).sum())


def test_names_are_keys() -> None:
    assert [format.name for format in FORMATS] == list(GGML_FORMATS)


@pytest.mark.parametrize("format", FORMATS, ids=names(FORMATS))
def test_hostile_weights_without_importance(format: Format) -> None:
    w = hostile()
    if isinstance(format, ReferenceCoded):
        w = np.clip(w, -6e4, 6e4)  # beyond, scale or minimum is infinite as in llama.cpp
    check_both_libraries_and_rows(format, w)


@pytest.mark.parametrize("format", FORMATS, ids=names(FORMATS))
def test_hostile_weights_with_importance(format: Format) -> None:
    importance = np.abs(np.random.default_rng(3).standard_normal(256)).astype(np.float32)
    importance[:40] = 0
    check_both_libraries_and_rows(format, hostile(), importance)


@pytest.mark.parametrize("format", FORMATS, ids=names(FORMATS))
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_slab_height_does_not_matter(format: Format, weighted: bool) -> None:
    rng = np.random.default_rng(11)
    cols = 512
    w = rng.standard_normal((2 * CHUNK // cols + 5, cols)).astype(np.float32)
    importance = rng.random(cols).astype(np.float32) if weighted else None
    codes, params = nearest(w, format, importance)
    for rows in (slice(0, 1), slice(1, 40), slice(40, None)):
        part, part_params = nearest(w[rows], format, importance)
        assert np.array_equal(part, codes[rows])
        assert all(np.array_equal(part_params[name], params[name][rows]) for name in params)


@pytest.mark.parametrize("format", SEARCHED, ids=names(SEARCHED))
def test_importance_lowers_the_error_it_weighs(format: Format) -> None:
    rng = np.random.default_rng(5)
    w = rng.standard_t(4, (16, 512)).astype(np.float32)
    importance = np.exp(1.5 * rng.standard_normal(512)).astype(np.float32)
    with_it = weighted_error(format, w, importance, importance)
    without = weighted_error(format, w, None, importance)
    assert with_it < without
    plain = np.ones_like(importance)
    assert weighted_error(format, w, None, plain) < weighted_error(format, w, importance, plain)


@pytest.mark.parametrize("format", FORMATS, ids=names(FORMATS))
def test_importance_of_zeros_counts_as_none_and_its_unit_does_not_matter(format: Format) -> None:
    rng = np.random.default_rng(6)
    w = rng.standard_normal((3, 256)).astype(np.float32)
    importance = rng.random(256).astype(np.float32)
    none, zeros = format.fit(w), format.fit(w, np.zeros(256, np.float32))
    one, scaled = format.fit(w, importance), format.fit(w, importance * np.float32(2.0**90))
    for name in none:
        assert np.array_equal(none[name], zeros[name])
        assert np.array_equal(one[name], scaled[name])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_impossible_importance_is_refused(bad: float) -> None:
    importance = np.ones(256, np.float32)
    importance[3] = bad
    with pytest.raises(TensorError, match="importance"):
        GGML_FORMATS["q4_k"].fit(np.ones((1, 256), np.float32), importance)


@pytest.mark.parametrize("format", FORMATS, ids=names(FORMATS))
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1000.0, -1000.0])
def test_constant_rows_keep_their_value(format: Format, value: float) -> None:
    w = np.full((2, 256), value, np.float32)
    codes, params = nearest(w, format)
    # scales of mxfp4 are powers of two, those of nvfp4 have four bits and end at 448, d of iq4_xs takes 1/32 steps
    usual = 0.75 if isinstance(format, VectorFormat) else 0.002  # scales are sought for weights that are uneven
    slack = {"mxfp4": 0.2, "nvfp4": 0.04 if abs(value) < 448 * 6 else 1}.get(format.name, usual)
    assert np.abs(format.grid(params).values(codes) - w).max() <= slack * abs(value)


@pytest.mark.parametrize("format", K_TYPES, ids=names(K_TYPES))
def test_nearest_codes_of_own_values_reproduce_them(format: Format) -> None:
    w = np.random.default_rng(8).standard_normal((4, 512)).astype(np.float32)
    codes, params = nearest(w, format)
    grid = format.grid(params)
    values = grid.values(codes)
    assert np.array_equal(grid.values(grid.nearest(values)), values)


def test_tree_sum_adds_in_one_order_whatever_the_width() -> None:
    a = np.random.default_rng(1).standard_normal((32, 1000)).astype(np.float32)
    together = tree_sum(a)
    assert all(tree_sum(a[:, i : i + 1])[0] == together[i] for i in range(1000))
    assert np.allclose(together, a.sum(0, dtype=np.float64), atol=1e-5)

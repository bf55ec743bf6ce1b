"""AWQ: losses through the Gram matrix are the outputs' errors, the search helps where features stick out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitsmith.calibration.transforms import TRANSFORMS
from bitsmith.calibration.transforms.awq import Awq, fit_clipped, output_error
from bitsmith.calibration.transforms.base import rescale_block, settled
from bitsmith.errors import UsageError
from bitsmith.models.arch.groups import linear_groups
from bitsmith.quant.formats import get_format
from tests.calibration.transforms.samples import LLAMA, alone, block_tensors, matrix, outlying, stats_of
from tests.runtime.small import random_tensors

ROWS = np.arange(256)


def test_the_gram_matrix_gives_the_error_of_the_outputs() -> None:
    x, error = outlying(300, 64), matrix(10, 64) * 0.1
    wanted = float(np.square(x.astype(np.float64) @ error.T.astype(np.float64)).sum()) / 300
    assert output_error(error, stats_of(x)) == pytest.approx(wanted, rel=1e-4)
    assert output_error(error, stats_of(x, gram=False)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["int4-g128", "int3-g64-asym", "nf4", "q4_k", "mxfp4"])
def test_the_search_lowers_the_error_it_reports(name: str) -> None:
    x, w, format = outlying(400, 256), matrix(24, 256), get_format(name)
    found = Awq(steps=10)(alone(), {"ffn_down": w}, {"ffn_down": format}, stats_of(x), ROWS)
    assert found.changes
    assert found.reason.startswith("alpha")
    assert found.loss_after < 0.99 * found.loss_before
    rescaled = w * found.scale
    grid = format.grid(format.fit(rescaled, stats_of(x / found.scale).importance))
    real = np.square((x / found.scale) @ grid.values(grid.nearest(rescaled)).T - x @ w.T).sum() / len(x)
    assert real == pytest.approx(found.loss_after, rel=1e-2)


def test_nothing_is_rescaled_where_nothing_is_gained() -> None:
    flat = np.random.default_rng(0).choice([-1.0, 1.0], (400, 256)).astype(np.float32)
    exact = np.tile(np.array([-7, 7, 3, 1], np.float32), (24, 64))
    found = Awq(steps=4)(alone(), {"ffn_down": exact}, {"ffn_down": get_format("int4-g128")}, stats_of(flat), ROWS)
    assert not found.changes
    assert found.loss_after == found.loss_before
    assert "no rescaling" in found.reason


def test_dead_and_tied_columns() -> None:
    x = outlying(400, 256)
    x[:, 7] = 0.0
    rows = ROWS // 64 // 2 * 64 + ROWS % 64
    found = Awq(steps=4)(
        alone(), {"ffn_down": matrix(24, 256)}, {"ffn_down": get_format("int3-g128")}, stats_of(x), rows
    )
    assert np.isfinite(found.scale).all()
    assert (found.scale[:64] == found.scale[64:128]).all()
    alive = np.delete(ROWS, [7, 71])
    assert len(np.unique(found.scale[alive])) > 100


def test_factors_have_geometric_mean_one_and_stay_bounded() -> None:
    live = np.ones(8, bool)
    live[2] = False
    scale = settled(np.array([1, 2, 0, 4, 8, 1e9, 1, 1], np.float64), live, np.arange(8))
    assert scale[2] == 1.0
    assert scale.max() == 2.0**10
    assert np.log(
        settled(np.array([1, 2, 4, 8, 1, 1, 1, 1], np.float64), np.ones(8, bool), np.arange(8))
    ).mean() == pytest.approx(0.0, abs=1e-6)
    assert (settled(np.ones(4), np.zeros(4, bool), np.arange(4)) == 1.0).all()


def test_statistics_without_gram_or_sample_are_refused() -> None:
    empty = replace(stats_of(outlying(50, 256), gram=False), sample=np.empty((0, 256), np.float32))
    with pytest.raises(UsageError, match="Gram"):
        Awq()(alone(), {"ffn_down": matrix(8, 256)}, {"ffn_down": get_format("int4")}, empty, ROWS)


@pytest.mark.parametrize("name", ["int3-g64", "int2-g64-asym", "nf4"])
def test_clipping_beats_the_plain_extent_on_the_outputs(name: str) -> None:
    x, w, format = outlying(400, 256), matrix(24, 256), get_format(name)
    stats = stats_of(x)
    plain, clipped = format.fit(w), fit_clipped(w, format, stats)
    errors = [format.grid(params).values(format.grid(params).nearest(w)) - w for params in (plain, clipped)]
    before, after = (
        np.square(np.einsum("tgb,rgb->trg", x.reshape(400, -1, 64), e.reshape(24, -1, 64))).sum() for e in errors
    )
    assert after < 0.95 * before
    assert {name: values.dtype for name, values in clipped.items()} == {name: v.dtype for name, v in plain.items()}


@pytest.mark.parametrize("name", ["int4-channel", "q3_k", "q4_0"])
def test_formats_that_search_are_fitted_with_importance(name: str) -> None:
    x, w, format = outlying(400, 256), matrix(8, 256), get_format(name)
    stats = stats_of(x)
    wanted = format.fit(w, stats.importance)
    assert all(np.array_equal(values, wanted[key]) for key, values in fit_clipped(w, format, stats).items())


def test_a_block_is_rescaled_group_by_group() -> None:
    tensors = block_tensors(LLAMA, random_tensors(LLAMA))
    groups = linear_groups(LLAMA)
    formats = {name: get_format("int3-channel") for group in groups for name in group.linears if name != "attn_output"}
    stats = {group.name: stats_of(outlying(100, tensors[f"{group.linears[0]}.weight"].shape[1])) for group in groups}
    refused = (*groups[:3], replace(groups[3], producer=None))
    folded, found = rescale_block(Awq(steps=4), LLAMA, refused, tensors, formats, stats)
    assert [each.changes for each in found] == [True, False, True, False]
    assert "16 bits" in found[1].reason
    assert "nothing" in found[3].reason
    np.testing.assert_allclose(
        folded["attn_q.weight"] * folded["attn_norm.weight"],
        tensors["attn_q.weight"] * tensors["attn_norm.weight"],
        rtol=1e-5,
    )
    assert folded["ffn_down.weight"] is tensors["ffn_down.weight"]


def test_the_table_names_every_transform() -> None:
    assert all(each.make({}).needs <= {"gram", "sample"} for each in TRANSFORMS.values())

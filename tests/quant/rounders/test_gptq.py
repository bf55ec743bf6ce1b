"""GPTQ on every format: what it gains, what it keeps, what it does not depend on."""

import numpy as np
import pytest
import torch

from bitsmith.errors import TensorError
from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.base import Format, VectorFormat
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.rounders.gptq import Rounded, gptq, gptq_rows, joined
from bitsmith.quant.rounders.hessian import Order, prepare
from bitsmith.quant.rounders.nearest import nearest
from tests.quant.formats.samples import hostile, told
from tests.quant.rounders.problems import ALL, NAMES, error, problem

ORDERS: tuple[Order, ...] = ("natural", "activation", "pivoted")
SOME = ("int4-g128", "int2-g64-asym", "int3-channel", "nf4-dq", "q2_k", "q3_k", "nvfp4", "fp8-tensor")


def values(format: Format, rounded: Rounded) -> np.ndarray:
    return np.asarray(format.grid(rounded.params).values(rounded.codes))


def same(a: Rounded, b: Rounded) -> bool:
    params = all(np.array_equal(as_numpy(a.params[name]), as_numpy(b.params[name])) for name in a.params)
    return params and np.array_equal(as_numpy(a.codes), as_numpy(b.codes))


@pytest.mark.parametrize("format", ALL, ids=NAMES)
def test_outputs_lose_less_than_with_nearest(format: Format) -> None:
    w, h = problem()
    format = told(format, w)
    codes, params = nearest(w, format, np.diagonal(h).copy())
    before = error(w, format.grid(params).values(codes), h).sum()
    published = gptq(w, format, h, sweeps=0)
    swept = gptq(w, format, h)
    errors = [error(w, values(format, rounded), h).sum() for rounded in (published, swept)]
    assert errors[0] < 0.8 * before
    assert errors[1] < errors[0]
    for rounded, found in zip((published, swept), errors, strict=True):
        assert rounded.report.error == pytest.approx(found, rel=1e-3)
        assert rounded.report.rows == len(w)
        layout = format.params_layout(*w.shape)
        assert {name: (p.shape, p.dtype) for name, p in rounded.params.items()} == layout
        assert rounded.codes.dtype == (np.int32 if isinstance(format, VectorFormat) else np.uint8)


@pytest.mark.parametrize("format", ALL, ids=NAMES)
def test_without_correlations_it_is_nearest(format: Format) -> None:
    w, _ = problem(rows=4)
    format = told(format, w)
    importance = np.ones(w.shape[1], np.float32)
    codes, params = nearest(w, format, importance)
    if format.name in ("q4_0", "q8_0", "q4_1", "q5_0", "q5_1"):  # `nearest` with importance searches, as gptq does
        params = format.fit(w, importance)
        codes = format.grid(params).nearest(w)
    rounded = gptq(w, format, np.eye(w.shape[1], dtype=np.float32), refit=False)
    assert np.array_equal(rounded.codes, codes)
    assert all(np.array_equal(rounded.params[name], params[name]) for name in params)
    assert rounded.report.kept == 0
    assert rounded.report.error == pytest.approx(rounded.report.nearest)


def test_activation_order_is_natural_order_of_sorted_columns() -> None:
    w, h = problem(cols=200)
    order = np.argsort(-np.diagonal(h), kind="stable")
    format = get_format("int3-channel-asym")  # one scale a row: columns may trade places
    sorted_first = gptq(w[:, order].copy(), format, h[np.ix_(order, order)], order="natural", sweeps=0)
    assert np.array_equal(gptq(w, format, h, order="activation", sweeps=0).codes[:, order], sorted_first.codes)
    assert not np.array_equal(gptq(w, format, h, order="natural", sweeps=0).codes[:, order], sorted_first.codes)


@pytest.mark.parametrize("name", SOME)
def test_what_it_does_not_depend_on(name: str) -> None:
    w, h = problem(rows=21, cols=512)
    format = told(get_format(name), w)
    factor = prepare(h)
    whole = gptq_rows(w, format, factor, sweeps=1)
    assert same(whole, gptq(torch.from_numpy(w), format, torch.from_numpy(h), sweeps=1))
    assert same(whole, gptq(w, format, 1024 * h, sweeps=1))
    slabs = [gptq_rows(w[at], format, factor, sweeps=1) for at in (slice(0, 1), slice(1, 6), slice(6, 21))]
    assert np.array_equal(np.concatenate([slab.codes for slab in slabs]), whole.codes)
    for key, param in whole.params.items():
        assert np.array_equal(np.concatenate([slab.params[key] for slab in slabs]), param)
    assert joined(slab.report for slab in slabs).error == pytest.approx(whole.report.error)


@pytest.mark.parametrize("name", ["int3-channel", "int4-g128", "q2_k"])
def test_each_order_beats_the_one_before(name: str) -> None:
    w, h = problem(rows=32, tokens=120)
    found = [gptq(w, get_format(name), h, order=order, sweeps=0).report.error for order in ORDERS]
    assert found[2] < found[1] < found[0]


def test_threads_do_not_change_bytes() -> None:
    w, h = problem(rows=256, cols=512, tokens=600)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(gptq(w, get_format("q4_k"), h, sweeps=1))
    torch.set_num_threads(before)
    assert same(*found)


def test_a_row_that_does_worse_keeps_nearest() -> None:
    w, _ = problem(rows=64, cols=64)
    noise = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    h = np.eye(64, dtype=np.float32) + 0.01 * (noise + noise.T)  # so little correlated that greed wins nothing
    format = get_format("int2-g64")
    factor = prepare(h, order="natural")
    rounded = gptq_rows(w, format, factor, sweeps=0)
    params = format.fit(w, factor.diagonal.numpy())
    plain = format.grid(params).nearest(w)
    before, after = error(w, format.grid(params).values(plain), h), error(w, values(format, rounded), h)
    assert (after <= before * (1 + 1e-5)).all()
    untouched = int((rounded.codes == plain).all(axis=1).sum())
    assert 0 < rounded.report.kept <= untouched < len(w)
    assert rounded.report.nearest == pytest.approx(before.sum(), rel=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_dead_columns_are_rounded_to_nearest(name: str) -> None:
    w, h = problem()
    dead = [0, 17, 200, 255]
    h[dead] = 0
    h[:, dead] = 0
    format = told(get_format(name), w)
    rounded = gptq(w, format, h)
    assert rounded.report.dead == 4
    plain = format.grid(rounded.params).nearest(w)
    assert np.array_equal(rounded.codes[:, dead], plain[:, dead])
    assert rounded.report.error < rounded.report.nearest


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_fewer_tokens_than_columns(name: str, damping: float) -> None:
    w, h = problem(tokens=40)
    format = told(get_format(name), w)
    rounded = gptq(w, format, h, damping=damping)
    assert np.isfinite(values(format, rounded)).all()
    assert rounded.report.error < 0.7 * rounded.report.nearest
    assert rounded.report.damping >= damping


def test_all_columns_dead_is_nearest() -> None:
    w, h = problem(cols=64)
    format = get_format("int4-g32")
    rounded = gptq(w, format, 0 * h)
    assert np.array_equal(rounded.codes, format.grid(rounded.params).nearest(w))
    assert rounded.report.error == 0


@pytest.mark.parametrize("name", SOME)
def test_hostile_weights_stay_finite(name: str) -> None:
    w = hostile()
    _, h = problem(cols=w.shape[1])
    format = told(get_format(name), w)
    assert np.isfinite(values(format, gptq(w, format, h))).all()


def test_what_does_not_fit_is_refused() -> None:
    w, h = problem(cols=64)
    with pytest.raises(TensorError, match=r"expected weights \[rows, 64\].*\[8, 32\]"):
        gptq(w[:, :32], get_format("int4-g32"), h)
    w[3, 5] = np.nan
    with pytest.raises(TensorError, match="NaN"):
        gptq(w, get_format("int4-g32"), h)


def test_no_rows() -> None:
    _, h = problem(cols=64)
    rounded = gptq(np.zeros((0, 64), np.float32), get_format("int4-g32-asym"), h)
    assert rounded.codes.shape == (0, 64)
    assert rounded.params["zero"].shape == (0, 2)


def test_slabs_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    w, h = problem(rows=21, cols=64)
    whole = gptq(w, get_format("int4-g32"), h, sweeps=1)
    monkeypatch.setattr("bitsmith.quant.rounders.gptq.slab_rows", lambda cols: 5)
    cut = gptq(w, get_format("int4-g32"), h, sweeps=1)
    assert same(whole, cut)
    assert (cut.report.rows, cut.report.kept) == (21, whole.report.kept)

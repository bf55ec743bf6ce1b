"""Scales chosen by trial: the C++ core gives the numpy code's parameters and codes, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.awq import Awq, fit_clipped
from bitsmith.quant.formats import get_format
from bitsmith.quant.formats.core_ladder import clipped, fitted, rounded, rounded_values, scale_search
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.system.core import core
from tests.quant.formats.samples import hostile

pytestmark = pytest.mark.skipif(not hasattr(core(), "ScaleSearch"), reason="needs the C++ core of these sources")
NAMES = [
    "int8-g128-asym",
    "int8-channel",
    "int4-g64",
    "int4-g128-f16",
    "int3-g32-f16-asym",
    "int3-channel-asym",
    "int2-g64",
    "int2-g32-asym",
    "nf4",
    "fp4",
    "nf4-g256",
    "fp8",
]
ISAS = [] if core() is None else core().isas()  # type: ignore[union-attr]


def ordinary(rows: int = 70) -> tuple[np.ndarray, np.ndarray]:
    """Weights [rows, 512] and an importance with dead columns."""
    rng = np.random.default_rng(1)
    importance = (rng.random(512) ** 4).astype(np.float32)
    importance[100:140] = 0
    return rng.standard_t(4, (rows, 512)).astype(np.float32) * np.float32(0.03), importance


@pytest.mark.parametrize("name", NAMES)
def test_the_same_scales_and_codes(name: str) -> None:
    format = get_format(name)
    for w, importance in (ordinary(), (hostile(), np.linspace(0, 1, 256, dtype=np.float32))):
        expected = format.fit_reference(w, importance)  # type: ignore[attr-defined]
        grid = format.grid(expected)
        found = fitted(format, w, importance)
        assert found is not None
        for key, values in expected.items():
            np.testing.assert_array_equal(np.asarray(found[key]), np.asarray(values))
        both = rounded(format, w, importance, threads=3)
        assert both is not None
        np.testing.assert_array_equal(both[0], grid.nearest(w))
        np.testing.assert_array_equal(rounded_values(format, w, importance), grid.values(both[0]))
        codes, _ = nearest(w, format, importance)
        np.testing.assert_array_equal(codes, both[0])


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    w, importance = ordinary()
    for name in ("int4-g64", "int3-g32-f16-asym", "nf4"):
        format = get_format(name)
        search = scale_search(format, isa=isa)
        assert search is not None
        codes = np.empty(w.shape, np.uint8)
        search.fit(w, importance, threads=2, codes=codes)
        np.testing.assert_array_equal(codes, nearest(w, format, importance)[0])


def seen() -> Stats:
    """Statistics of correlated inputs."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((900, 512)).astype(np.float32)
    x += x @ (rng.standard_normal((512, 512)).astype(np.float32) / 16)
    gram = x.T @ x
    return Stats(900, np.diag(gram).astype(np.float64), np.abs(x).mean(0), np.abs(x).max(0), gram, x[:0])


@pytest.mark.parametrize("name", ["int4-g64", "int2-g32-asym", "nf4", "int3-g128"])
def test_clipping_and_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    format, stats, (w, _) = get_format(name), seen(), ordinary()
    scale = np.exp(np.random.default_rng(3).standard_normal(512) * 0.3).astype(np.float32)
    found, loss = fit_clipped(w, format, stats), Awq()._loss({"a": w}, {"a": format}, stats, scale)
    for threads in (2, 3):
        again = clipped(format, w, stats.gram, tuple(1.0 - 0.025 * step for step in range(21)), threads=threads)
        assert again is not None
        assert all(np.array_equal(np.asarray(again[key]), np.asarray(found[key])) for key in found)
    monkeypatch.setattr("bitsmith.calibration.transforms.awq.clipped", lambda *args, **words: None)
    monkeypatch.setattr("bitsmith.calibration.transforms.awq.scale_search", lambda *args: None)
    expected = fit_clipped(w, format, stats)
    for key in expected:  # losses are summed in another order, so that almost equal ratios may change places
        same = np.asarray(found[key]) == np.asarray(expected[key])
        assert same.mean() > 0.99
    assert loss == pytest.approx(Awq()._loss({"a": w}, {"a": format}, stats, scale), rel=1e-6)


def test_wrong_arrays_are_refused() -> None:
    search = scale_search(get_format("int4-g64"))
    assert search is not None
    w = np.zeros((2, 128), np.float32)
    with pytest.raises(ValueError, match="do not divide into blocks of 64"):
        search.fit(np.zeros((2, 100), np.float32), None, threads=1)
    with pytest.raises(ValueError, match="importance has shape"):
        search.fit(w, np.zeros(64, np.float32), threads=1)
    with pytest.raises(ValueError, match="codes has shape"):
        search.fit(w, None, threads=1, codes=np.zeros((2, 64), np.uint8))
    with pytest.raises(ValueError, match="gram has shape"):
        search.clip(w, np.zeros((64, 64), np.float32), threads=1)

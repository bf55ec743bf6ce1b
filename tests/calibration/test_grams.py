"""Gram matrices and drifts in the C++ core, against numpy in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from bitsmith.calibration import grams
from bitsmith.calibration.grams import GramSum
from bitsmith.system.core import core

CORE = core()
needs_core = pytest.mark.skipif(CORE is None or not hasattr(CORE, "add_grams"), reason="no core with add_grams")
ISAS = [] if CORE is None else CORE.isas()
SHAPES = [(1, 1), (3, 5), (513, 33), (700, 96), (64, 130)]
BFLOAT16 = [isa for isa in ISAS if isa in ("avx512bf16", "amx")]


def _inputs(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    x = rng.standard_t(4, (rows, cols)).astype(np.float32)
    return x, x + 0.05 * rng.standard_normal(x.shape).astype(np.float32)


def _sums(x: np.ndarray, original: np.ndarray, **how) -> tuple[np.ndarray, np.ndarray]:
    """The upper triangle of the Gram matrix, and the drift, by the core."""
    assert CORE is not None
    gram, drift = (np.ones((x.shape[1],) * 2, np.float32) for _ in range(2))
    CORE.add_grams(x, gram, original, drift, **how)
    return np.triu(gram - 1.0), drift - 1.0


def _rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


@needs_core
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_sums_in_float32(isa: str, rows: int, cols: int) -> None:
    x, original = _inputs(rows, cols)
    gram, drift = _sums(x, original, isa=isa)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(gram, np.triu(wide.T @ wide), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(drift, (original - x).astype(np.float64).T @ wide, rtol=2e-5, atol=2e-4)


@needs_core
@pytest.mark.parametrize("isa", BFLOAT16)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_rounded_sums_are_those_of_rounded_inputs(isa: str, rows: int, cols: int) -> None:
    x, original = _inputs(rows, cols)
    gram, drift = _sums(x, original, isa=isa, rounded=True)
    wide, moved = _rounded(x), _rounded(original - x)
    np.testing.assert_allclose(gram, np.triu(wide.T @ wide), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(drift, moved.T @ wide, rtol=2e-5, atol=2e-4)


@needs_core
@pytest.mark.parametrize("rounded", [False, True])
def test_the_same_bits_for_any_number_of_threads(rounded: bool) -> None:
    if rounded and not BFLOAT16:
        pytest.skip("this processor does not multiply bfloat16")
    how = {"rounded": rounded, "isa": BFLOAT16[-1] if rounded else ""}
    x, original = _inputs(1100, 100)
    alone = _sums(x, original, threads=1, **how)
    for threads in (2, 3):
        for found, expected in zip(_sums(x, original, threads=threads, **how), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


@needs_core
def test_what_does_not_fit_is_refused() -> None:
    assert CORE is not None
    x, gram = np.zeros((4, 3), np.float32), np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match="drift"):
        CORE.add_grams(x, gram, x)
    with pytest.raises(ValueError, match=r"gram has shape \[3, 3\]; expected \[2, 2\]"):
        CORE.add_grams(np.zeros((4, 2), np.float32), gram)
    with pytest.raises(ValueError, match="products of bfloat16"):
        CORE.add_grams(x, gram, rounded=True, isa="generic")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_core_sums_as_the_definition_does(kind, rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, original = _inputs(600, 64)

    def sums() -> tuple[np.ndarray, np.ndarray]:
        meter = GramSum(rounded=rounded)
        for start in (0, 100):
            part = slice(start, 100 if start == 0 else None)
            meter.add(kind(x[part]), kind(original[part]))
        return np.asarray(meter.gram).copy(), np.asarray(meter.drift).copy()

    found = sums()
    monkeypatch.setattr(grams, "core", lambda: None)
    for own, expected in zip(found, sums(), strict=True):
        scale = np.sqrt(np.abs(expected).max() * 600)
        assert np.abs(own - expected).max() < (0.01 if rounded else 1e-5) * scale
    np.testing.assert_array_equal(found[0], found[0].T)


def test_a_rounded_gram_matrix_is_positive_semidefinite() -> None:
    """Fewer tokens than columns, so that its smallest eigenvalues are zero."""
    x, _ = _inputs(40, 96)
    meter = GramSum(rounded=True)
    meter.add(torch.from_numpy(x))
    values = np.linalg.eigvalsh(np.asarray(meter.gram, np.float64))
    assert values.min() > -1e-6 * values.max()

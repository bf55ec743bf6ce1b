"""KLD and its companions against direct float64 formulas."""

import numpy as np
import pytest

from bitsmith.evaluation.divergence import DivergenceMeter, compare
from bitsmith.evaluation.perplexity import token_losses


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64))
    return exact / exact.sum(axis=1, keepdims=True)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    reference = rng.normal(0, 3, (400, 701)).astype(np.float32)
    logits = reference + rng.normal(0, 0.3, reference.shape).astype(np.float32)
    return logits, reference, rng.integers(0, 701, 400)


def test_tokens_against_direct_formulas(pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, reference, targets = pair
    p, p_reference = softmax(logits), softmax(reference)
    tokens = compare(logits, reference, targets)
    np.testing.assert_allclose(tokens.kld, (p_reference * np.log(p_reference / p)).sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(tokens.losses, token_losses(logits, targets), rtol=1e-14)
    np.testing.assert_allclose(tokens.reference_losses, token_losses(reference, targets), rtol=1e-14)
    assert 0 < np.count_nonzero(tokens.same_top) < 400
    np.testing.assert_array_equal(tokens.same_top, p.argmax(axis=1) == p_reference.argmax(axis=1))


def test_summary_against_direct_formulas(pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, reference, targets = pair
    meter = DivergenceMeter(701)
    for part in np.split(np.arange(400), [7, 250]):
        meter.add(compare(logits[part], reference[part], targets[part]))
    result = meter.result()

    def error(values: np.ndarray) -> float:
        return float(values.std(ddof=1) / np.sqrt(values.size))

    tokens = compare(logits, reference, targets)
    each = np.arange(400)
    delta_p = softmax(logits)[each, targets] - softmax(reference)[each, targets]
    assert result.kld.value == pytest.approx(tokens.kld.mean(), rel=1e-12)
    assert result.kld.error == pytest.approx(error(tokens.kld), rel=1e-12)
    assert result.kld_median == pytest.approx(np.median(tokens.kld), rel=1e-6)
    assert result.kld_99 == pytest.approx(np.quantile(tokens.kld, 0.99), rel=1e-6)
    assert result.kld_999 == pytest.approx(np.quantile(tokens.kld, 0.999), rel=1e-6)
    assert (result.kld_min, result.kld_max) == pytest.approx((tokens.kld.min(), tokens.kld.max()), rel=1e-6)
    agreement = tokens.same_top.mean()
    assert result.top1.value == agreement
    assert result.top1.error == pytest.approx(error(tokens.same_top.astype(float)), rel=1e-12)
    assert result.delta_p.value == pytest.approx(delta_p.mean(), rel=1e-9)
    assert result.delta_p.error == pytest.approx(error(delta_p), rel=1e-9)
    assert result.delta_p_rms.value == pytest.approx(np.sqrt(np.mean(delta_p**2)), rel=1e-9)
    assert result.delta_p_rms.error == pytest.approx(0.5 * error(delta_p**2) / result.delta_p_rms.value, rel=1e-9)
    assert result.reference_perplexity.value == pytest.approx(np.exp(tokens.reference_losses.mean()))
    assert result.ratio.value == pytest.approx(np.exp((tokens.losses - tokens.reference_losses).mean()))
    assert result.ratio.error == pytest.approx(result.ratio.value * error(tokens.losses - tokens.reference_losses))


def test_divergence_is_directed() -> None:
    sure = np.log(np.array([[0.98, 0.01, 0.01]], dtype=np.float32))
    even = np.zeros((1, 3), dtype=np.float32)
    forward = compare(even, sure, np.array([0])).kld[0]
    assert forward == pytest.approx(0.98 * np.log(3 * 0.98) + 0.02 * np.log(0.03), rel=1e-6)
    assert compare(sure, even, np.array([0])).kld[0] > 2 * forward


def test_same_logits_diverge_by_zero_and_a_shift_by_nothing_that_counts() -> None:
    logits = np.random.default_rng(4).normal(0, 4, (20, 5000)).astype(np.float32)
    targets = np.zeros(20, dtype=np.int64)
    assert not compare(logits, logits, targets).kld.any()
    assert np.abs(compare(logits + np.float32(8.0), logits, targets).kld).max() < 1e-6


def test_tiny_divergence_is_not_lost() -> None:
    reference = np.zeros((1, 1000), dtype=np.float32)
    logits = reference.copy()
    logits[0, 0] = 1e-4
    # KL of a perturbation d of one of n even logits: d^2 (1/n - 1/n^2) / 2 to second order
    assert compare(logits, reference, np.array([0])).kld[0] == pytest.approx(1e-8 * (1e-3 - 1e-6) / 2, rel=1e-3)


def test_padded_vocabulary_is_compared_on_the_common_tokens(pair: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    logits, reference, targets = pair
    padded = np.concatenate([logits, np.full((400, 3), 2.0, dtype=np.float32)], axis=1)
    wide, narrow = compare(padded, reference, targets), compare(logits, reference, targets)
    np.testing.assert_allclose(wide.kld, narrow.kld, rtol=1e-12)
    np.testing.assert_array_equal(wide.same_top, narrow.same_top)
    np.testing.assert_allclose(wide.losses, token_losses(padded, targets), rtol=1e-14)
    other = compare(reference, padded, targets)
    np.testing.assert_allclose(other.reference_losses, token_losses(padded, targets), rtol=1e-14)
    np.testing.assert_allclose(other.losses, token_losses(reference, targets), rtol=1e-14)

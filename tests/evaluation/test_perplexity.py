"""Losses and perplexity against direct formulas."""

import math

import numpy as np
import pytest

from bitsmith.evaluation.perplexity import CHUNK_VALUES, PerplexityMeter, row_chunks, token_losses


def test_losses_equal_the_log_softmax() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 5, (50, 97)).astype(np.float32)
    targets = rng.integers(0, 97, 50)
    exact = np.exp(logits.astype(np.float64))
    expected = -np.log(exact[np.arange(50), targets] / exact.sum(1))
    np.testing.assert_allclose(token_losses(logits, targets), expected, rtol=1e-13)


def test_large_logits_do_not_overflow() -> None:
    losses = token_losses(np.array([[3e4, 3e4, -3e4], [-3e38, 0, -3e38]], dtype=np.float32), np.array([1, 1]))
    np.testing.assert_allclose(losses, [math.log(2.0), 0.0], atol=1e-15)


def test_chunks_cover_every_row_once_for_a_wide_vocabulary() -> None:
    for rows, vocab in [(5, CHUNK_VALUES * 2), (1000, 1000), (131, 1000)]:
        slices = list(row_chunks(np.broadcast_to(np.float32(0), (rows, vocab))))
        assert np.concatenate([np.arange(rows)[each] for each in slices]).tolist() == list(range(rows))
        assert all(len(range(*each.indices(rows))) * vocab <= max(vocab, CHUNK_VALUES) for each in slices)


def test_losses_do_not_depend_on_chunks() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (300, 1009)).astype(np.float32)
    targets = rng.integers(0, 1009, 300)
    one_by_one = [token_losses(logits[i : i + 1], targets[i : i + 1])[0] for i in range(300)]
    np.testing.assert_allclose(token_losses(logits, targets), one_by_one, rtol=1e-14)


def test_an_even_model_has_the_vocabulary_as_perplexity() -> None:
    meter = PerplexityMeter()
    for _ in range(3):
        meter.add(token_losses(np.zeros((4, 37), dtype=np.float32), np.arange(4)))
    result = meter.result()
    assert result.tokens == 12
    assert result.perplexity.value == pytest.approx(37.0)
    assert result.perplexity.error == pytest.approx(0.0, abs=1e-12)


def test_standard_error_is_over_tokens() -> None:
    losses = np.array([1.0, 2.0, 4.0])
    meter = PerplexityMeter()
    meter.add(losses[:2])
    meter.add(losses[2:])
    error = losses.std(ddof=1) / math.sqrt(3)
    assert meter.result().loss.error == pytest.approx(error)
    assert meter.result().perplexity.error == pytest.approx(math.exp(7 / 3) * error)

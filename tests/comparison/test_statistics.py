"""Errors over documents, held against formulas and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from bitsmith.comparison.scores import TokenScores, joined
from bitsmith.comparison.statistics import Draws, difference, summarize, wilson
from bitsmith.errors import FileError


def scores(kld: np.ndarray, shift: float = 0.0) -> TokenScores:
    count = len(kld)
    losses = np.random.default_rng(9).normal(3, 1, count) + shift
    return TokenScores(losses, kld, np.arange(count) % 10 != 0, np.arange(count) % 3 == 0)


def test_independent_tokens_have_the_usual_error() -> None:
    values = np.random.default_rng(1).exponential(1, 4000)
    drawn = Draws([np.arange(4000)], draws=4000).means([values[:, None]])
    assert drawn.std() == pytest.approx(values.std() / np.sqrt(4000), rel=0.05)


def test_tokens_of_one_document_count_as_one() -> None:
    documents = np.random.default_rng(2).normal(0, 1, 100)
    values, clusters = np.repeat(documents, 50), np.repeat(np.arange(100), 50)
    drawn = Draws([clusters], draws=4000).means([values[:, None]])
    assert drawn.std() == pytest.approx(documents.std() / 10, rel=0.06)


def test_shares_of_domains_stay() -> None:
    first, second = np.zeros((300, 1)), np.ones((100, 1))
    drawn = Draws([np.arange(300), np.arange(100)]).means([first, second])
    assert np.all(drawn == 0.25)


def test_the_same_seed_gives_the_same_errors() -> None:
    values = np.random.default_rng(3).normal(0, 1, (500, 1))
    clusters = np.arange(500) // 7
    assert np.array_equal(Draws([clusters]).means([values]), Draws([clusters]).means([values]))


def test_a_summary_holds_the_means_of_all_tokens() -> None:
    kld = np.linspace(0, 1, 1001)
    original, model = scores(np.zeros(1001)), scores(kld, 0.1)
    found = summarize([model], [original], Draws([np.arange(1001) // 10])).summary
    assert found.tokens == 1001
    assert found.kld.value == pytest.approx(0.5)
    assert (found.kld_median, found.kld_90, found.kld_max) == pytest.approx((0.5, 0.9, 1.0))
    assert found.quality.value == pytest.approx(np.exp(-0.1))
    assert found.quality.error == pytest.approx(0, abs=1e-9)
    assert found.perplexity.value == pytest.approx(np.exp(model.losses.mean()))
    assert (found.lost.value, found.won.value) == (0, 0)


def test_pairs_are_separated_where_single_errors_overlap() -> None:
    """The same documents are hard for both, so that the difference has a far smaller error than each mean."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(80), 20)
    hard = np.repeat(rng.exponential(1, 80), 20)
    original, draws = scores(np.zeros(1600)), Draws([clusters])
    first = summarize([scores(hard)], [original], draws)
    worse = summarize([scores(hard * 1.02 + rng.normal(0, 0.001, 1600))], [original], draws)
    alike = summarize([scores(hard + rng.normal(0, 0.3, 1600))], [original], draws)
    assert worse.summary.kld.value - first.summary.kld.value < first.summary.kld.error
    assert not difference(worse, first).tie
    assert difference(alike, first).tie
    assert difference(first, first).tie


@pytest.mark.parametrize(("hits", "count"), [(8, 10), (0, 20), (20, 20), (500, 1000), (1, 3)])
def test_wilson(hits: int, count: int) -> None:
    """At both ends the share found lies just 1.96 standard deviations of that end away."""
    for end in wilson(hits, count):
        distance, deviation = abs(hits / count - end), np.sqrt(end * (1 - end) / count)
        assert distance == pytest.approx(1.959964 * deviation, abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_scores_are_kept_whole() -> None:
    whole = scores(np.random.default_rng(5).exponential(1, 333))
    data = whole.to_bytes()
    again = TokenScores.from_bytes(data, 333)
    assert all(np.array_equal(value, vars(again)[name]) for name, value in vars(whole).items())
    with pytest.raises(FileError, match="not those of 334"):
        TokenScores.from_bytes(data, 334)
    with pytest.raises(FileError, match="damaged"):
        TokenScores.from_bytes(b"nothing", 333)
    assert len(joined([whole, whole]).losses) == 666


def test_errors_and_ties_computed_another_way() -> None:
    """The error of a ratio by its formula, and ties by whether the mean difference lies within 1.96 of its errors."""
    rng = np.random.default_rng(6)
    sizes = rng.integers(5, 60, 150)
    clusters = np.repeat(np.arange(150), sizes)
    hard = np.repeat(rng.exponential(1, 150), sizes)
    draws, original = Draws([clusters], draws=8000), scores(np.zeros(len(clusters)))

    def formula(values: np.ndarray) -> float:
        rest = np.bincount(clusters, values - values.mean())
        return float(np.sqrt(150 / 149 * (rest**2).sum()) / len(values))

    models = [hard * (1 + 0.01 * step) + rng.exponential(0.4, len(hard)) for step in range(6)]
    found = [summarize([scores(values)], [original], draws) for values in models]
    for drawn, values in zip(found, models, strict=True):
        assert drawn.summary.kld.error == pytest.approx(formula(values), rel=0.04)
    distances = []
    for one, first in zip(found, models, strict=True):
        for other, second in zip(found, models, strict=True):
            if first is not second:
                distances.append(abs((first - second).mean()) / formula(first - second))
                if abs(distances[-1] - 1.96) > 0.15:
                    assert difference(one, other).tie == (distances[-1] < 1.96)
    assert min(distances) < 1.8 < 2.1 < max(distances)


def test_wilson_holds_the_true_share_as_often_as_it_says() -> None:
    hits = np.random.default_rng(7).binomial(100, 0.43, 4000)
    held = [low <= 0.43 <= high for low, high in (wilson(int(each), 100) for each in hits)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)

"""Measuring speed: what is fed to the model, and the arithmetic of the figures; on a fake decoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from bitsmith.errors import UsageError
from bitsmith.evaluation.bandwidth import _numpy_bandwidth, read_bandwidth
from bitsmith.evaluation.speed import Rate, Speed, check_counts, measure_speed
from bitsmith.system.progress import Progress


class Cache:
    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0

    def truncate(self, slot: int, length: int) -> None:
        assert slot == 0
        self.length = length


@dataclass
class Network:
    """Keeps (filled before, tokens fed) of each call."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def new_cache(self, capacity: int) -> Cache:
        return Cache(capacity)

    def prefill(self, tokens: np.ndarray, cache: Cache) -> None:
        assert tokens.ndim == 2
        assert 0 <= tokens.min() <= tokens.max() < 100
        self.calls.append((cache.length, tokens.shape[1]))
        cache.length += tokens.shape[1]
        assert cache.length <= cache.capacity


@dataclass(frozen=True)
class Shape:
    context: int = 64
    vocab: int = 100


@dataclass(frozen=True)
class Model:
    config: Shape = field(default_factory=Shape)
    decoder: Network = field(default_factory=Network)


def test_a_prompt_is_fed_at_once_and_generation_token_by_token() -> None:
    model, reports = Model(), list[Progress]()
    prompt, generation = measure_speed(model, prompt=7, gen=3, repeat=2, report=reports.append)
    warm_up = [(0, 7)], [(0, 1)]
    assert model.decoder.calls == [*warm_up[0], *[(0, 7)] * 2, *warm_up[1], *[(0, 1), (1, 1), (2, 1)] * 2]
    assert prompt is not None
    assert generation is not None
    assert (prompt.tokens, len(prompt.seconds)) == (7, 2)
    assert (generation.tokens, len(generation.seconds)) == (3, 2)
    last = {progress.stage: progress for progress in reports}
    assert {stage: (each.done, each.total) for stage, each in last.items()} == {"prompt": (21, 21), "generate": (7, 7)}


def test_zero_tokens_leave_a_measurement_out() -> None:
    model = Model()
    assert measure_speed(model, prompt=0, gen=2, repeat=1)[0] is None
    assert measure_speed(model, prompt=2, gen=0, repeat=1)[1] is None


def test_the_mean_is_that_of_speeds() -> None:
    rate = Rate(10, (1.0, 2.0))
    assert rate.values == [10, 5]
    assert rate.mean == 7.5
    assert rate.deviation == pytest.approx(12.5**0.5)
    assert Rate(10, (2.0,)).deviation == 0


def test_the_share_of_the_bandwidth() -> None:
    speed = Speed("m", 1, None, Rate(4, (2.0,)), 1.0, 5, 1000, 8000.0)
    assert speed.read_rate == 2000
    assert speed.to_dict()["bandwidth_share"] == 0.25
    assert Speed("m", 1, None, None, 1.0, 5, 1000, 8000.0).to_dict()["bandwidth_share"] is None


def test_counts() -> None:
    assert check_counts(1024, prompt=None, gen=None, repeat=1) == (512, 128)
    assert check_counts(100, prompt=None, gen=None, repeat=1) == (100, 100)
    assert check_counts(100, prompt=100, gen=0, repeat=1) == (100, 0)
    with pytest.raises(UsageError, match="prompt=101"):
        check_counts(100, prompt=101, gen=1, repeat=1)


@pytest.mark.parametrize("measure", [read_bandwidth, _numpy_bandwidth])
@pytest.mark.parametrize("threads", [1, 3])
def test_bandwidth_is_a_number(measure, threads: int) -> None:  # type: ignore[no-untyped-def]
    words = {"size": 8 << 20, "passes": 2}
    assert 0 < measure(threads, **words) < 1e14

"""Choosing tokens: llama.cpp's filters in its order, seeds, ends, batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.config import Rope
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.generate import Completion, Generated, generate, generate_batch
from bitsmith.runtime.sampler import Sampler, candidates, penalized
from bitsmith.runtime.sampling import GREEDY, PENALTY_WINDOW, Sampling
from tests.runtime.small import TINY, decoder_of, random_tensors

ALL = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15]))  # by likelihood: 1, 3, 4, 0, 2


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    config = replace(TINY, rope=Rope(dim=8), context=24)
    return decoder_of(config, random_tensors(config))


def _kept(**options: Any) -> list[int]:
    return [int(token) for token in candidates(LOGITS, replace(ALL, **options))[0]]


def test_no_filter_keeps_all_likeliest_first() -> None:
    ids, probabilities = candidates(LOGITS, ALL)
    assert ids.tolist() == [1, 3, 4, 0, 2]
    np.testing.assert_allclose(probabilities, [0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [1, 3, 4, 0, 2]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"min_p": 0.3}, [1, 3, 4]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),  # of three: 0.47 + 0.35
        ({"top_p": 0.99, "min_p": 0.2}, [1, 3, 4, 0]),
        ({"temperature": 100.0, "top_p": 0.69}, [1, 3]),  # temperature comes last
        ({"temperature": 100.0, "min_p": 0.3}, [1, 3, 4]),
    ],
)
def test_filters(options: dict[str, Any], kept: list[int]) -> None:
    assert _kept(**options) == kept


def test_temperature_divides_the_logits_of_what_is_left() -> None:
    _, probabilities = candidates(LOGITS, replace(ALL, temperature=0.5, top_k=2))
    np.testing.assert_allclose(probabilities, np.array([0.16, 0.09]) / 0.25)
    _, frozen = candidates(LOGITS, replace(ALL, temperature=1e-300))
    assert frozen.tolist() == [1, 0, 0, 0, 0]


def test_ties_go_to_the_lower_id() -> None:
    flat = np.zeros(6)
    assert candidates(flat, replace(ALL, top_k=2))[0].tolist() == [0, 1]
    assert Sampler(GREEDY)(flat) == 0


@pytest.mark.parametrize(("size", "count"), [(5000, 40), (4097, 64), (100, 99), (70, 1)])
def test_the_likeliest_of_large_vocabularies(size: int, count: int) -> None:
    logits = np.round(np.random.default_rng(size).standard_normal(size) * 3)  # many are equal
    expected = np.argsort(-logits, kind="stable")[:count]
    np.testing.assert_array_equal(candidates(logits, replace(ALL, top_k=count))[0], expected)


def test_repeated_tokens_become_less_likely() -> None:
    logits = np.array([2.0, -2.0, 0.0, 3.0])
    np.testing.assert_allclose(penalized(logits, [0, 1, 2, 0], 2.0), [1.0, -4.0, 0.0, 3.0])
    assert penalized(logits, [0, 1], 1.0) is logits
    assert penalized(logits, [], 2.0) is logits
    assert logits.tolist() == [2.0, -2.0, 0.0, 3.0]


def test_the_penalty_looks_back_on_prompt_and_text_alike() -> None:
    sampling = replace(GREEDY, repeat_penalty=4.0)
    sampler = Sampler(sampling, prompt=[3])
    logits = np.array([2.0, 1.0, 0.5, 3.0])
    assert [sampler(logits) for _ in range(4)] == [0, 1, 3, 3]  # 3 became 0.75, later all are penalized
    far = Sampler(sampling, prompt=[3] + [0] * PENALTY_WINDOW)
    assert far(logits) == 3  # 64 tokens ago
    assert Sampler(sampling, prompt=[3] + [0] * (PENALTY_WINDOW - 1))(logits) == 1


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(ALL)
    counts = np.bincount([sampler(LOGITS) for _ in range(20000)], minlength=5)
    np.testing.assert_allclose(counts / 20000, np.exp(LOGITS), atol=0.015)


def test_seeds() -> None:
    def draws(seed: int | None, row: int = 0) -> list[int]:
        sampler = Sampler(replace(ALL, seed=seed), row)
        return [sampler(LOGITS) for _ in range(40)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(7) != draws(7, row=1)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    with pytest.raises(TensorError, match="not finite"):
        Sampler(GREEDY)(np.array([0.0, bad]))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"seed": -1},
        {"repeat_penalty": 0.0},
        {"repeat_penalty": float("inf")},
        {"temperature": "warm"},
        {"top_k": 1.5},
    ],
)
def test_sampling_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)


def _slow(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(decoder.forward(np.array([ids]), first=-1)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_full_passes(decoder: Decoder) -> None:
    prompt = [3, 1, 4, 1, 5]
    got = list(generate(decoder, prompt, max_tokens=8, sampling=GREEDY))
    assert [item.token for item in got] == _slow(decoder, prompt, 8)
    assert [item.reason for item in got] == [None] * 7 + ["length"]


def test_end_token_stops(decoder: Decoder) -> None:
    tokens = _slow(decoder, [3, 1, 4], 8)
    end = tokens[4]
    got = list(generate(decoder, [3, 1, 4], max_tokens=8, sampling=GREEDY, end_ids={end}))
    assert got[-1] == Generated(end, "end")
    assert len(got) == tokens.index(end) + 1


def test_context_full_stops(decoder: Decoder) -> None:
    """The token behind the last position is still drawn; nothing is fed beyond the context."""
    got = list(generate(decoder, list(range(20)), max_tokens=100, sampling=GREEDY))
    assert len(got) == 5
    assert got[-1].reason == "context"
    full = list(generate(decoder, list(range(24)), max_tokens=100, sampling=GREEDY))
    assert [item.reason for item in full] == ["context"]


def test_generation_is_lazy_and_stops_when_closed(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = decoder.prefill

    def counted(tokens: np.ndarray, *rest: Any) -> Any:
        calls.append(tokens.shape[1])
        return real(tokens, *rest)

    monkeypatch.setattr(decoder, "prefill", counted)
    stream = generate(decoder, [1, 2, 3], max_tokens=9, sampling=GREEDY)
    assert calls == []
    next(stream)
    next(stream)
    stream.close()
    assert calls == [3, 1]
    assert list(stream) == []


def test_a_filled_cache_is_continued(decoder: Decoder) -> None:
    prompt = [3, 1, 4, 1, 5]
    cache = decoder.new_cache(12)
    decoder.prefill(np.array([prompt[:3]]), cache)
    got = [item.token for item in generate(decoder, prompt, max_tokens=6, sampling=GREEDY, cache=cache)]
    assert got == _slow(decoder, prompt, 6)


def test_batch_equals_each_alone(decoder: Decoder) -> None:
    prompts = [[3, 1, 4, 1, 5, 9], [2], [7, 7, 7]]
    sampling = Sampling(temperature=1.0, seed=5)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def note(row: int, token: int) -> None:
        seen[row].append(token)

    done = generate_batch(decoder, prompts, max_tokens=7, sampling=sampling, on_token=note)
    assert [list(completion.tokens) for completion in done] == list(seen.values())
    alone = list(generate(decoder, prompts[0], max_tokens=7, sampling=sampling))
    assert [item.token for item in alone] == seen[0]
    greedy = generate_batch(decoder, prompts, max_tokens=7, sampling=GREEDY)
    assert [list(completion.tokens) for completion in greedy] == [_slow(decoder, prompt, 7) for prompt in prompts]


def test_batch_reasons(decoder: Decoder) -> None:
    prompts = [list(range(22)), [3, 1, 4]]
    end = _slow(decoder, prompts[1], 9)[4]
    long, short = generate_batch(decoder, prompts, max_tokens=100, sampling=GREEDY, end_ids={end})
    assert short.reason == "end"
    assert short.tokens[-1] == end
    assert (long.reason, len(long.tokens)) == ("context", 3)
    short, long = generate_batch(decoder, [[5], list(range(24))], max_tokens=1000, sampling=GREEDY)
    assert (short.reason, len(short.tokens)) == ("context", 24)
    assert (long.reason, len(long.tokens)) == ("context", 1)
    assert generate_batch(decoder, [], max_tokens=1) == list[Completion]()


def test_sequences_that_ended_are_not_computed_on(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[5], [3, 1, 4], list(range(23))]
    alone = [_slow(decoder, prompt, 6) for prompt in prompts]
    end = alone[1][2]
    rows: list[int] = []
    real = decoder.prefill

    def counted(tokens: np.ndarray, *rest: Any, **words: Any) -> Any:
        rows.append(tokens.shape[0])
        return real(tokens, *rest, **words)

    monkeypatch.setattr(decoder, "prefill", counted)
    done = generate_batch(decoder, prompts, max_tokens=6, sampling=GREEDY, end_ids={end})
    lengths = [len(completion.tokens) for completion in done]
    assert [list(completion.tokens) for completion in done] == [
        tokens[:length] for tokens, length in zip(alone, lengths, strict=True)
    ]
    assert lengths[1] <= 3
    assert rows == [3, *(sum(length > step for length in lengths) for step in range(1, max(lengths)))]


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 5), (list(range(25)), 5), ([1], 0)])
def test_bad_calls_fail_at_once(decoder: Decoder, prompt: list[int], max_tokens: int) -> None:
    with pytest.raises(UsageError):
        generate(decoder, prompt, max_tokens=max_tokens)
    with pytest.raises(UsageError):
        generate_batch(decoder, [[1], prompt], max_tokens=max_tokens)

"""Guesses from the text so far: what is guessed, and that no token changes."""

from __future__ import annotations

import pytest

import bitsmith
from bitsmith.errors import UsageError
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.generate import check_lookup, generate
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.lookup import Lookup
from bitsmith.runtime.sampling import GREEDY
from bitsmith.system.core import core
from tests.runtime.small import TINY, decoder_of, random_tensors

REPEATING = "It was the best of times, it was the worst of times, " * 4
SAMPLINGS = ({"temperature": 0.0}, {"temperature": 0.8, "seed": 5}, {"temperature": 1.2, "top_p": 0.9, "seed": 7})


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return bitsmith.load("reference", context=512)


def test_what_followed_the_same_tokens_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    lookup = Lookup(tokens, 8)
    assert lookup.guess(10) == [4, 5, 6, 1]  # half as many as it may, until some came true
    assert lookup.guess(2) == [4, 5]
    assert Lookup([1, 2, 3] * 3, 8).guess(10) == [1, 2, 3, 1]  # beyond the end of the text
    assert lookup.guess(0) == []
    tokens += [9, 1, 2, 3]
    assert lookup.guess(10)[0] == 9  # the last time counts
    tokens.append(7)
    assert lookup.guess(10) == []


def test_guesses_that_fail_are_tried_less() -> None:
    tokens = [1, 2, 3] * 6
    lookup = Lookup(tokens, 8)
    tried = 0
    for _ in range(60):
        guess = lookup.guess(8)
        tried += len(guess)
        lookup.learn(len(guess), 0)
    assert lookup.guessed == tried < 40
    for _ in range(40):
        guess = lookup.guess(8)
        lookup.learn(len(guess), len(guess))
    assert len(lookup.guess(8)) > 4


@pytest.mark.skipif(core() is None, reason="no C++ core")
@pytest.mark.parametrize("words", SAMPLINGS)
@pytest.mark.parametrize("prompt", [REPEATING, "The whale"])
def test_no_token_changes(model: LanguageModel, prompt: str, words: dict[str, float]) -> None:
    plain = model.stream(prompt, max_tokens=80, **words)  # type: ignore[arg-type]
    guessed = model.stream(prompt, max_tokens=80, lookup=6, **words)  # type: ignore[arg-type]
    assert "".join(plain) == "".join(guessed)
    assert plain.stats.reason == guessed.stats.reason
    assert plain.stats.generated_tokens == guessed.stats.generated_tokens


def test_torch_gives_the_same_tokens_in_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(TINY, random_tensors(TINY))
    steps = 0
    inner = Decoder.hidden

    def counted(*args: object, **words: object) -> object:
        nonlocal steps
        steps += 1
        return inner(*args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "hidden", counted)
    prompt = [3, 4, 5, 6, 7] * 4
    plain = [each.token for each in generate(decoder, prompt, max_tokens=40, sampling=GREEDY)]
    found = [each.token for each in generate(decoder, prompt, max_tokens=40, sampling=GREEDY, lookup=4)]
    assert found == plain
    assert 0 < steps < 40


def test_a_stream_that_is_stopped_keeps_nothing_wrong(model: LanguageModel) -> None:
    """A guess that fails must not stay in the cache that the next call uses."""
    expected = model.generate(REPEATING + "and then", max_tokens=40, temperature=0)
    for taken in range(1, 12):
        stream = model.stream(REPEATING, max_tokens=60, lookup=6, temperature=0)
        said = "".join(next(stream) for _ in range(taken))
        stream.close()
        again = model.generate(REPEATING + said, max_tokens=20, temperature=0, lookup=6)
        fresh = bitsmith.load("reference", context=512) if taken in (3, 7) else None
        if fresh is not None:
            assert fresh.generate(REPEATING + said, max_tokens=20, temperature=0) == again
    assert model.generate(REPEATING + "and then", max_tokens=40, temperature=0, lookup=6) == expected


def test_what_makes_no_sense_is_refused(model: LanguageModel) -> None:
    for wrong in (-1, 33):
        with pytest.raises(UsageError, match="expected 0 to 32"):
            model.generate("x", lookup=wrong)

    class Stateful:
        config = type("Config", (), {"delta": object()})

    with pytest.raises(UsageError, match="cannot go back"):
        check_lookup(Stateful(), 4)  # type: ignore[arg-type]
    check_lookup(Stateful(), 0)  # type: ignore[arg-type]


def test_the_context_and_the_limit_are_held(model: LanguageModel) -> None:
    ids = model.prompt_ids(REPEATING)[:60]
    small = bitsmith.load("reference", context=64)
    found = small.stream(ids, max_tokens=None, lookup=16, temperature=0)
    text = "".join(found)
    plain = small.stream(ids, max_tokens=None, temperature=0)
    assert text == "".join(plain)
    assert found.stats.generated_tokens == plain.stats.generated_tokens
    assert found.stats.reason == plain.stats.reason

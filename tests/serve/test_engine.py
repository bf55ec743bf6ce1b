"""Continuous batching: answers do not depend on who else is there; prefixes are kept; queues are bounded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import UsageError
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.sampling import GREEDY
from bitsmith.serve.engine import BusyError, Engine, Limits
from bitsmith.serve.wish import Done, Drawing, Event, Failed, Piece, Wish
from tests.tiny import make_folder

TEXTS = ("The whale", "A ship that sails", "It was the best of times, it was", "Call me", "In the beginning", "Once")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return bitsmith.load("reference", context=256)


@pytest.fixture
def engine(model: LanguageModel) -> Iterator[Engine]:
    made = Engine(model, Limits(parallel=3, queue=8, chunk=16))
    yield made
    made.close()


def wish(model: LanguageModel, text: str, most: int = 12, **words: Any) -> Wish:
    return Wish(model.prompt_ids(text), most, Drawing(GREEDY), **words)


class Heard:
    """Collects what comes of one wish."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def end(self) -> tuple[str, Done | Failed]:
        """The whole text, and the end."""
        text = ""
        while True:
            event = self.events.get(timeout=60)
            if not isinstance(event, Piece):
                return text, event
            text += event.text


def test_answers_together_are_those_alone(model: LanguageModel, engine: Engine) -> None:
    heard = [Heard() for _ in TEXTS]
    for text, each in zip(TEXTS, heard, strict=True):
        engine.submit(wish(model, text), each.events.put)
    for text, each in zip(TEXTS, heard, strict=True):
        found, done = each.end()
        assert isinstance(done, Done)
        assert found == model.generate(text, max_tokens=12, temperature=0), text
        assert (done.why, done.tokens) == ("length", 12)


def test_torch_answers_alike(tmp_path: Any) -> None:
    loaded = bitsmith.load(make_folder(tmp_path / "tiny"), kernel="torch", context=64)
    engine = Engine(loaded, Limits(parallel=2, chunk=8))
    prompts = [list(range(100, 120)), list(range(100, 118)), [*range(100, 110), *range(50, 60)]]
    for prompt in prompts:
        heard = Heard()
        engine.submit(Wish(prompt, 6, Drawing(GREEDY)), heard.events.put)
        assert heard.end()[0] == loaded.generate(prompt, max_tokens=6, temperature=0)
    assert engine.counts.reused_tokens > 0
    engine.close()


def test_what_a_slot_holds_is_not_computed_again(model: LanguageModel, engine: Engine) -> None:
    text = "It was the best of times, it was the worst of times"
    ids = model.prompt_ids(text)
    for expected in (0, len(ids) - 1):
        heard = Heard()
        engine.submit(wish(model, text, 4), heard.events.put)
        found, done = heard.end()
        assert isinstance(done, Done)
        assert done.reused == expected
        assert found == model.generate(text, max_tokens=4, temperature=0)


def test_a_beginning_that_another_text_still_uses_is_copied(model: LanguageModel, engine: Engine) -> None:
    text = "It was the best of times, it was the worst of times"
    first, second = Heard(), Heard()
    engine.submit(wish(model, text, 60), first.events.put)
    while not isinstance(first.events.get(timeout=60), Piece):
        pass
    engine.submit(wish(model, text, 4), second.events.put)
    found, done = second.end()
    assert isinstance(done, Done)
    assert done.reused == len(model.prompt_ids(text)) - 1
    assert found == model.generate(text, max_tokens=4, temperature=0)
    assert isinstance(first.end()[1], Done)


def test_nobody_waits_for_a_cancelled_answer(model: LanguageModel, engine: Engine) -> None:
    heard = Heard()
    sequence = engine.submit(wish(model, "The whale", 200), heard.events.put)
    while not isinstance(heard.events.get(timeout=60), Piece):
        pass
    engine.cancel(sequence)
    _, done = heard.end()
    assert isinstance(done, Done)
    assert done.why == "cancelled"
    assert done.tokens < 200
    after = Heard()
    engine.submit(wish(model, "The whale", 4), after.events.put)
    assert after.end()[0] == model.generate("The whale", max_tokens=4, temperature=0)


def test_the_queue_is_bounded(model: LanguageModel) -> None:
    engine = Engine(model, Limits(parallel=1, queue=2))
    started = threading.Event()
    blocked = threading.Event()

    def hold(event: Event) -> None:
        started.set()
        blocked.wait(30)

    engine.submit(wish(model, "The whale", 3), hold)
    assert started.wait(30)
    heard = [Heard(), Heard()]
    for each in heard:
        engine.submit(wish(model, "A ship", 2), each.events.put)
    with pytest.raises(BusyError, match="2 requests wait already; try again in"):
        engine.submit(wish(model, "No", 2), print)
    blocked.set()
    for each in heard:
        assert isinstance(each.end()[1], Done)
    engine.close()
    with pytest.raises(UsageError, match="going down"):
        engine.submit(wish(model, "No", 2), print)


def test_a_damaged_model_fails_the_answer_and_not_the_engine(
    model: LanguageModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    with monkeypatch.context() as patch:
        broken = np.full((1, model.config.vocab), np.nan, np.float32)
        patch.setattr(model.decoder, "logits", lambda *args, **words: broken, raising=False)
        engine.submit(wish(model, "The whale", 4), heard.events.put)
        _, end = heard.end()
    assert isinstance(end, Failed)
    assert "not finite" in end.error
    after = Heard()
    engine.submit(wish(model, "The whale", 4), after.events.put)
    assert after.end()[0] == model.generate("The whale", max_tokens=4, temperature=0)


def test_answers_end_with_the_context(model: LanguageModel, engine: Engine) -> None:
    heard = Heard()
    prompt = model.prompt_ids("whale " * 60)[:250]
    engine.submit(Wish(prompt, None, Drawing(GREEDY)), heard.events.put)
    _, done = heard.end()
    assert isinstance(done, Done)
    assert done.why in ("context", "end")
    assert len(prompt) + done.tokens <= 256


def test_many_clients_that_come_and_go(model: LanguageModel) -> None:
    """Random lengths, stops and cancellations: every answer that ends is the one that it would be alone."""
    engine = Engine(model, Limits(parallel=4, queue=1000, chunk=32))
    alone = {text: model.generate(text, max_tokens=20, temperature=0) for text in TEXTS}
    draw = np.random.default_rng(0)
    waiting = []
    for _ in range(60):
        text, heard = TEXTS[draw.integers(len(TEXTS))], Heard()
        sequence = engine.submit(wish(model, text, int(draw.integers(1, 21))), heard.events.put)
        if draw.random() < 0.3:
            engine.cancel(sequence)
        waiting.append((text, heard))
    for text, heard in waiting:
        found, done = heard.end()
        assert isinstance(done, Done)
        assert alone[text].startswith(found)
    assert engine.load == (0, 0)
    engine.close()


def test_a_slow_or_broken_grammar_holds_nobody_up(
    model: LanguageModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance")
    began, go_on, grammars = threading.Event(), threading.Event(), engine.grammars

    def slow(grammar: str) -> Any:
        began.set()
        go_on.wait(30)
        raise ValueError("broken")

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(grammars, "matcher", slow)
        formed = Wish(model.prompt_ids("The whale"), 4, Drawing(GREEDY, grammar="x"))
        engine.submit(formed, heard.events.put)
        assert began.wait(30)
        assert engine.load == (1, 0)  # the lock is free
        go_on.set()
        _, end = heard.end()
    assert isinstance(end, Failed)
    assert "internal error: ValueError" in end.error
    after = Heard()
    engine.submit(wish(model, "The whale", 4), after.events.put)
    assert after.end()[0] == model.generate("The whale", max_tokens=4, temperature=0)


def test_matchers_of_one_grammar_do_not_share_their_place(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    grammars = engine.grammars
    grammar = grammars.regex("ab+")
    first, second = grammars.matcher(grammar), grammars.matcher(grammar)
    start = second.allowed()
    first.take(int(np.flatnonzero(first.allowed())[0]))
    assert np.array_equal(second.allowed(), start)
    assert np.array_equal(grammars.matcher(grammar).allowed(), start)
    for number in range(20):
        grammars.matcher(grammars.regex(f"a{{{number + 1}}}"))
    assert np.array_equal(grammars.matcher(grammar).allowed(), start)

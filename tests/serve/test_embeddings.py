"""Embeddings go through the engine: the same in company, in pieces between steps, cancelled, refused when busy."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

import bitsmith  # noqa: E402
from bitsmith.errors import UsageError  # noqa: E402
from bitsmith.runtime.language_model import LanguageModel  # noqa: E402
from bitsmith.runtime.sampling import GREEDY  # noqa: E402
from bitsmith.serve.engine import BusyError, Engine, Limits  # noqa: E402
from bitsmith.serve.wish import Done, Drawing, Event, Piece, Pooled, PoolEvent, Pooling, Wish  # noqa: E402
from tests.serve.server import Running, serving  # noqa: E402

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return bitsmith.load("reference", context=256)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Limits(parallel=2, queue=4)) as found:
        yield found


def expected(model: LanguageModel, ids: list[int], pooling: Pooling) -> np.ndarray:
    decoder = model.decoder
    made = decoder.hidden(np.array([ids]), decoder.new_cache(len(ids)), single=0)  # no token as if it came alone
    states = decoder.numpy(decoder.normed(made))[0].astype(np.float64)
    pooled = states.mean(axis=0) if pooling == "mean" else states[-1]
    found: np.ndarray = pooled / np.linalg.norm(pooled)
    return found


def pooled(engine: Engine, ids: list[int], pooling: Pooling) -> np.ndarray:
    events: queue.Queue[PoolEvent] = queue.Queue()
    engine.embed(ids, pooling, events.put)
    event = events.get(timeout=60)
    assert isinstance(event, Pooled)
    return event.vector


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_does_not_depend_on_pieces_and_company(model: LanguageModel, pooling: Pooling) -> None:
    ids = model.prompt_ids(TEXT)
    whole = Engine(model, Limits(parallel=1))
    pieces = Engine(model, Limits(parallel=3, chunk=4))
    answer: queue.Queue[Event] = queue.Queue()
    pieces.submit(Wish(model.prompt_ids("The whale"), 60, Drawing(GREEDY)), answer.put)
    alone = pooled(whole, ids, pooling)
    for _ in range(2):  # the second time a slot holds the text
        assert np.array_equal(pooled(pieces, ids, pooling), alone)
    assert np.abs(alone - expected(model, ids, pooling)).max() < 1e-6
    assert abs(np.linalg.norm(alone) - 1) < 1e-6
    whole.close()
    pieces.close()


def test_a_long_text_does_not_hold_answers_up(model: LanguageModel) -> None:
    engine = Engine(model, Limits(parallel=2, chunk=8))
    events: queue.Queue[Event | PoolEvent] = queue.Queue()
    engine.submit(Wish(model.prompt_ids("The whale"), 200, Drawing(GREEDY, top_logprobs=0)), events.put)
    assert isinstance(events.get(timeout=60), Piece)
    engine.embed(([*model.prompt_ids(TEXT)] * 20)[:240], "mean", events.put)
    between = 0
    while not isinstance(event := events.get(timeout=60), Pooled):
        assert isinstance(event, Piece)
        between += 1
    assert between >= 240 // 8 - 5
    engine.close()


def test_the_queue_is_bounded_for_embeddings_too(model: LanguageModel) -> None:
    engine = Engine(model, Limits(parallel=1, queue=1))
    held: queue.Queue[Event] = queue.Queue()
    engine.submit(Wish(model.prompt_ids("The whale"), 240, Drawing(GREEDY)), held.put)
    held.get(timeout=60)
    waiting: queue.Queue[PoolEvent] = queue.Queue()
    job = engine.embed([5, 6], "mean", waiting.put)
    with pytest.raises(BusyError):
        engine.embed([5, 6], "mean", waiting.put)
    engine.cancel(job)
    event = waiting.get(timeout=60)
    assert isinstance(event, Done)
    assert event.why == "cancelled"
    engine.close()


def test_a_text_is_left_in_the_middle(model: LanguageModel) -> None:
    engine = Engine(model, Limits(parallel=1, chunk=1))
    events: queue.Queue[PoolEvent] = queue.Queue()
    job = engine.embed([5] * 250, "mean", events.put)
    while engine.counts.steps < 3:
        time.sleep(0.001)
    engine.cancel(job)
    assert isinstance(events.get(timeout=60), Done)
    assert engine.counts.prompt_tokens < 250
    assert np.array_equal(pooled(engine, [5] * 9, "mean"), pooled(Engine(model, Limits()), [5] * 9, "mean"))
    engine.close()


def test_texts_that_cannot_be_embedded(model: LanguageModel) -> None:
    engine = Engine(model, Limits())
    for ids in ([], [5] * 257, [model.config.vocab], [-1]):
        with pytest.raises(UsageError):
            engine.embed(ids, "mean", print)


def test_more_texts_than_the_queue_holds(running: Running) -> None:
    texts = [f"The whale {number}" for number in range(40)]
    made = httpx.post(f"{running.url}/v1/embeddings", json={"input": texts}, timeout=120).json()
    assert [each["index"] for each in made["data"]] == list(range(40))
    for number in (0, 17, 39):
        wanted = expected(running.model, running.model.prompt_ids(texts[number]), "mean")
        assert np.abs(np.array(made["data"][number]["embedding"]) - wanted).max() < 1e-6
    assert made["usage"]["prompt_tokens"] == sum(len(running.model.prompt_ids(text)) for text in texts)


def test_a_full_server_says_when_to_come_again(running: Running) -> None:
    started, blocked = threading.Event(), threading.Event()

    def hold(event: Event) -> None:
        started.set()
        blocked.wait(60)

    wish = Wish(running.model.prompt_ids("The whale"), 2, Drawing(GREEDY))
    running.engine.submit(wish, hold)
    try:
        assert started.wait(30)
        for _ in range(4):
            running.engine.submit(wish, lambda event: None)
        refused = httpx.post(f"{running.url}/v1/embeddings", json={"input": "A ship"}, timeout=60)
    finally:
        blocked.set()
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert httpx.post(f"{running.url}/v1/embeddings", json={"input": "A ship"}, timeout=60).status_code == 200


def test_a_client_that_goes_away_ends_its_work(running: Running) -> None:
    host, _, port = running.url.removeprefix("http://").partition(":")
    body = b'{"input": [' + b", ".join([b'"' + b"whale " * 60 + b'"'] * 200) + b"]}"
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    tokens = running.engine.counts.prompt_tokens
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(head % len(body) + body)
    end = time.monotonic() + 30
    while running.engine.counts.prompt_tokens == tokens:
        assert time.monotonic() < end
        time.sleep(0.01)
    made.close()
    while running.engine.load != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    assert running.engine.load == (0, 0)
    assert running.engine.counts.prompt_tokens - tokens < 100 * 60

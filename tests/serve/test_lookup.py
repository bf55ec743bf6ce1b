"""Guesses in the server: the same answers, in fewer steps. And adapters: every text of a step has it."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from bitsmith.runtime.sampling import GREEDY, Sampling  # noqa: E402
from bitsmith.serve.engine import Limits  # noqa: E402
from bitsmith.serve.wish import Done, Drawing, Event, Piece, Wish  # noqa: E402
from bitsmith.system.core import core  # noqa: E402
from tests.adapters import make_adapter  # noqa: E402
from tests.serve.server import Running, serving  # noqa: E402
from tests.tiny import make_folder  # noqa: E402

REPEATING = "It was the best of times, it was the worst of times, " * 4
TEXTS = (REPEATING, "The whale", "A ship " * 20, "Call me", REPEATING + "and then it was")
DRAWINGS = (Drawing(GREEDY), Drawing(Sampling(temperature=0.7, seed=3)), Drawing(GREEDY, presence_penalty=0.5))


def answers(running: Running, **words: Any) -> list[tuple[str, int]]:
    """Texts and numbers of tokens of all answers, computed together."""
    waiting: list[queue.Queue[Event]] = []
    for drawing in DRAWINGS:
        for text in TEXTS:
            waiting.append(queue.Queue())
            running.engine.submit(Wish(running.model.prompt_ids(text), 40, drawing, **words), waiting[-1].put)
    found = []
    for each in waiting:
        text = ""
        while isinstance(event := each.get(timeout=120), Piece):
            text += event.text
        assert isinstance(event, Done)
        found.append((text, event.tokens))
    return found


@pytest.mark.skipif(core() is None, reason="no C++ core")
def test_answers_are_the_same_with_guesses_and_without() -> None:
    with serving(Limits(parallel=5)) as plain, serving(Limits(parallel=4, lookup=6, chunk=48)) as guessing:
        assert answers(plain) == answers(guessing)
        assert answers(plain, stops=("worst",)) == answers(guessing, stops=("worst",))
        assert guessing.engine.counts.right_guesses > 20
        assert guessing.engine.counts.drawn_tokens == plain.engine.counts.drawn_tokens
        assert "bitsmith_right_guesses_total" in httpx.get(f"{guessing.url}/metrics").text


def test_an_adapter_serves_all_texts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    adapter = make_adapter(tmp_path / "adapter", folder, size=0.3)
    with (
        serving(Limits(parallel=3), model=folder, adapter=adapter, context=64) as running,
        serving(model=folder, context=64) as plain,
    ):
        prompts = [list(range(first, first + 9)) for first in range(100, 160, 10)]
        body = {"prompt": prompts, "max_tokens": 8, "temperature": 0}
        texts = [
            [
                choice["text"]
                for choice in httpx.post(f"{each.url}/v1/completions", json=body, timeout=120).json()["choices"]
            ]
            for each in (running, plain)
        ]
        alone = [running.model.generate(prompt, max_tokens=8, temperature=0) for prompt in prompts]
    assert texts[0] == alone
    assert texts[0] != texts[1]

"""Threads of requests: how many wait for them, and what becomes of the work of clients that have gone."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("fastapi")

from anyio import CapacityLimiter

from bitsmith.errors import UsageError
from bitsmith.models.tokenizer.chat import LONGEST, TemplateRenderer
from bitsmith.serve import threads
from bitsmith.serve.engine import BusyError
from bitsmith.serve.threads import in_thread


def test_few_wait_and_work_of_gone_clients_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    go = threading.Event()

    def slow() -> None:
        go.wait(30)
        done.append("slow")

    async def trial() -> None:
        limiter = CapacityLimiter(1)
        first = asyncio.ensure_future(in_thread(slow, limiter))
        while limiter.borrowed_tokens == 0:
            await asyncio.sleep(0)
        gone = asyncio.ensure_future(in_thread(lambda: done.append("gone"), limiter))
        while limiter.statistics().tasks_waiting == 0:
            await asyncio.sleep(0)
        with pytest.raises(BusyError, match="1 requests wait"):
            await in_thread(lambda: None, limiter, most=1)
        gone.cancel()
        first.cancel()
        await asyncio.wait({first, gone})
        assert limiter.borrowed_tokens == 1  # the thread works on
        monkeypatch.setattr(threads, "LONGEST_WAIT", 0.01)
        with pytest.raises(BusyError):
            await in_thread(lambda: None, limiter)
        monkeypatch.setattr(threads, "LONGEST_WAIT", 30.0)
        go.set()
        await in_thread(lambda: done.append("last"), limiter)

    asyncio.run(trial())
    assert done == ["slow", "last"]


def test_a_long_conversation_is_not_the_templates_fault() -> None:
    messages = [{"role": "user", "content": "x" * (LONGEST + 1)}]
    with pytest.raises(UsageError, match="shorten it"):
        TemplateRenderer().render("{{ messages[0].content }}", messages, special={})

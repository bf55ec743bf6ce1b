"""Embeddings of texts: the last hidden states behind the final norm, pooled and scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from anyio import CapacityLimiter

from bitsmith.errors import UsageError
from bitsmith.serve.engine import BusyError, Engine
from bitsmith.serve.job import Job
from bitsmith.serve.requests import EmbeddingBody
from bitsmith.serve.stream import AnswerError
from bitsmith.serve.threads import in_thread
from bitsmith.serve.wish import Failed, Pooled, PoolEvent, Pooling

_MOST = 256  # texts of a request
_AGAIN = 0.05  # seconds until a further text of a request asks again for a place in the queue


async def embeddings(engine: Engine, body: EmbeddingBody, name: str, limiter: CapacityLimiter) -> dict[str, Any]:
    """The answer to POST /v1/embeddings. Where nobody waits for it any more, its texts leave the engine.

    limiter: of the threads that take texts apart
    Raises UsageError for no text, too many or too long ones, BusyError where the queue is full, AnswerError where the
    model fails.
    """
    texts = await _texts(engine, body, limiter)
    vectors = await _Vectors(engine, texts, body.pooling).all()
    data = [
        {"object": "embedding", "index": number, "embedding": _told(vector, body.encoding_format)}
        for number, vector in enumerate(vectors)
    ]
    tokens = sum(map(len, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


class _Vectors:
    """The embeddings of the texts of one request, as many in the engine at a time as it computes together.

    So other requests find their turn between them, and one of many short texts still shares steps.
    """

    def __init__(self, engine: Engine, texts: Sequence[Sequence[int]], pooling: Pooling) -> None:
        self._engine = engine
        self._texts = texts
        self._pooling = pooling
        self._loop = asyncio.get_running_loop()
        self._events = asyncio.Queue[tuple[int, PoolEvent]]()
        self._jobs: dict[int, Job] = {}
        self._found: dict[int, np.ndarray] = {}
        self._next = 0

    async def all(self) -> list[np.ndarray]:
        """float32 [hidden] of each text."""
        try:
            self._submit()  # where there is no room for the first text, the client hears it
            while len(self._found) < len(self._texts):
                self._fill()
                await self._take()
        finally:
            for job in self._jobs.values():
                self._engine.cancel(job)
        return [self._found[number] for number in range(len(self._texts))]

    def _fill(self) -> None:
        """Hand over further texts, while there is room in the queue."""
        try:
            while self._next < len(self._texts) and len(self._jobs) < self._engine.limits.parallel:
                self._submit()
        except BusyError:
            return

    async def _take(self) -> None:
        """Wait for one text, or until there may be room again."""
        if not self._jobs:
            await asyncio.sleep(_AGAIN)
            return
        number, event = await self._events.get()
        del self._jobs[number]
        if isinstance(event, Pooled):
            self._found[number] = event.vector
        else:
            raise AnswerError(event.error if isinstance(event, Failed) else "the server is going down.")

    def _submit(self) -> None:
        number = self._next
        self._jobs[number] = self._engine.embed(self._texts[number], self._pooling, self._delivery(number))
        self._next += 1

    def _delivery(self, number: int) -> Callable[[PoolEvent], None]:
        """Hands the end of one text over to the loop's thread."""

        def deliver(event: PoolEvent) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return deliver


def _told(vector: np.ndarray, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


async def _texts(engine: Engine, body: EmbeddingBody, limiter: CapacityLimiter) -> list[list[int]]:
    """The tokens of each text, one text after the other: a client that goes away ends this with the present one."""
    model = engine.model
    if body.dimensions not in (None, model.config.hidden):
        raise UsageError(f"dimensions: this model's embeddings have {model.config.hidden}; leave it out.")
    given = body.input
    if isinstance(given, str):
        texts: list[Any] = [given]
    else:
        texts = [given] if given and isinstance(given[0], int) else list(given)
    if not 1 <= len(texts) <= _MOST:
        raise UsageError(f"input: expected 1 to {_MOST} texts, found {len(texts)}.")
    found = []
    for number, text in enumerate(texts):
        ids = await in_thread(partial(model.prompt_ids, text), limiter) if isinstance(text, str) else list(text)
        if not 1 <= len(ids) <= engine.context:
            raise UsageError(f"input {number}: {len(ids):,} tokens; expected 1 to {engine.context:,}.")
        outside = next((token for token in ids if not 0 <= token < model.config.vocab), None)
        if outside is not None:
            raise UsageError(f"input {number}: token {outside} is not in 0..{model.config.vocab - 1}.")
        found.append(ids)
    return found

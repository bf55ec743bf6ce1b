"""Work of requests that threads do, so that the server goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter
from starlette.concurrency import run_in_threadpool

Result = TypeVar("Result")


class GoneError(Exception):
    """The client has gone, so that nobody waits for the answer."""


async def in_thread(work: Callable[[], Result], limiter: CapacityLimiter) -> Result:
    """The result of `work`, done by a thread once `limiter` has a place for it.

    Work whose waiting is cancelled does not begin. Work that has begun keeps its place until it ends, even when nobody
    waits for it any more: the number of threads stays bounded.
    """
    owner = object()
    await limiter.acquire_on_behalf_of(owner)
    task = asyncio.ensure_future(run_in_threadpool(work))

    def ended(task: asyncio.Task[Result]) -> None:
        limiter.release_on_behalf_of(owner)
        if not task.cancelled():
            task.exception()  # seen, so that it is not logged where nobody waits

    task.add_done_callback(ended)
    return await asyncio.shield(task)

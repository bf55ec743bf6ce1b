"""Work of requests that threads do, so that the server goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter
from starlette.concurrency import run_in_threadpool

from bitsmith.serve.engine import BusyError

LONGEST_WAIT = 20.0  # seconds for a place among the threads
Result = TypeVar("Result")


class GoneError(Exception):
    """The client has gone, so that nobody waits for the answer."""


async def in_thread(work: Callable[[], Result], limiter: CapacityLimiter, *, most: int | None = None) -> Result:
    """The result of `work`, done by a thread once `limiter` has a place for it.

    Work whose waiting is cancelled does not begin. Work that has begun keeps its place until it ends, even when nobody
    waits for it any more: the number of threads stays bounded.
    Raises BusyError where `most` wait for a place already, or none is free for long.
    """
    owner, waiting = object(), limiter.statistics().tasks_waiting
    if most is not None and waiting >= most:
        raise BusyError(waiting, round(LONGEST_WAIT))
    try:
        async with asyncio.timeout(LONGEST_WAIT):
            await limiter.acquire_on_behalf_of(owner)
    except TimeoutError as error:
        raise BusyError(limiter.statistics().tasks_waiting + 1, round(LONGEST_WAIT)) from error
    task = asyncio.ensure_future(run_in_threadpool(work))

    def ended(task: asyncio.Task[Result]) -> None:
        limiter.release_on_behalf_of(owner)
        if not task.cancelled():
            task.exception()  # seen, so that it is not logged where nobody waits

    task.add_done_callback(ended)
    return await asyncio.shield(task)

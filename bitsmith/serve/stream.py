"""From the engine's thread to asyncio: the events of answers as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from bitsmith.serve.answer import Part
from bitsmith.serve.engine import Engine
from bitsmith.serve.sequence import Sequence
from bitsmith.serve.talk import Prepared
from bitsmith.serve.wish import Done, Event, Failed, Likely, Piece


class AnswerError(Exception):
    """The engine failed on an answer."""


@dataclass(frozen=True)
class Progress:
    """What came of one answer.

    number: of the answer
    parts: text, thoughts and calls
    tokens: drawn tokens with log-probabilities, if asked for
    done: the end; None while more comes
    prompt_tokens, reused: of its prompt, and those of them that were in the cache already
    """

    number: int
    parts: Many[Part]
    tokens: Many[tuple[Likely, tuple[Likely, ...]]] = ()
    done: Done | None = None
    prompt_tokens: int = 0
    reused: int = 0


class Answers(AsyncIterator[Progress]):
    """What comes of all answers to a request, until each has ended. They are in the queue once this is made.

    Raises BusyError where the queue is full, and AnswerError, when it is iterated, where an answer fails.
    """

    def __init__(self, engine: Engine, prepared: Prepared) -> None:
        """To be made in a running loop."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events = asyncio.Queue[tuple[int, Event]]()
        self._parsers = [prepared.parser() for _ in prepared.wishes]
        self._sequences: list[Sequence] = []
        self._left = len(prepared.wishes)
        try:
            for number, wish in enumerate(prepared.wishes):
                self._sequences.append(engine.submit(wish, self._delivery(number)))
        except BaseException:
            self.cancel()
            raise

    def _delivery(self, number: int) -> Callable[[Event], None]:
        """Hands events of one answer over to the loop's thread."""

        def deliver(event: Event) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return deliver

    async def __anext__(self) -> Progress:
        if not self._left:
            raise StopAsyncIteration
        number, event = await self._events.get()
        if isinstance(event, Failed):
            raise AnswerError(event.error)
        sequence, parser = self._sequences[number], self._parsers[number]
        prompt, reused = len(sequence.wish.prompt), sequence.reused
        if isinstance(event, Piece):
            return Progress(number, parser.feed(event.text), event.tokens, prompt_tokens=prompt, reused=reused)
        self._left -= 1
        return Progress(number, parser.finish(), done=event, prompt_tokens=prompt, reused=reused)

    def cancel(self) -> None:
        """Nobody wants the answers any more. Those that have ended stay as they are."""
        for sequence in self._sequences:
            self._engine.cancel(sequence)

"""Generated text as it comes, and the figures of its generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bitsmith.runtime.generate import Generated, Reason


@dataclass(frozen=True)
class GenerationStats:
    """Counts and times of one generation.

    prompt_tokens: tokens of the prompt
    reused_tokens: of these, tokens whose keys and values were still in the cache from the call before
    generated_tokens: tokens drawn so far, with the end token
    prompt_seconds: time from the start to the first token
    generation_seconds: time of all later tokens; the time that the caller takes between tokens is not in it
    reason: why the generation ended, see `Generated`; None where it has not, or was stopped
    """

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    reason: Reason | None = None

    @property
    def prompt_rate(self) -> float | None:
        """Tokens of the prompt computed in a second; None before the first token."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prompt_seconds)

    @property
    def generation_rate(self) -> float | None:
        """Tokens generated in a second, without the first, which belongs to the prompt; None where there was one."""
        return _rate(self.generated_tokens - 1, self.generation_seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; rates are tokens a second."""
        return {**vars(self), "prompt_rate": self.prompt_rate, "generation_rate": self.generation_rate}


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


class TextStream(Iterator[str]):
    """Pieces of text, as they are generated. `close` stops the work."""

    def __init__(self, tokens: TimedTokens, pieces: Generator[str]) -> None:
        self._tokens = tokens
        self._pieces = pieces

    @property
    def stats(self) -> GenerationStats:
        """The figures so far."""
        return self._tokens.stats

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the work; there are no further pieces."""
        self._pieces.close()


class TimedTokens(Iterator[Generated]):
    """Generated tokens.

    stats: their number and the time that they took, so far
    """

    def __init__(
        self,
        tokens: Iterator[Generated],
        *,
        prompt_tokens: int,
        reused_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._tokens = tokens
        self._clock = clock
        self.stats = GenerationStats(prompt_tokens, reused_tokens)

    def __next__(self) -> Generated:
        started = self._clock()
        generated = next(self._tokens)
        seconds, stats = self._clock() - started, self.stats
        self.stats = replace(
            stats,
            generated_tokens=stats.generated_tokens + 1,
            prompt_seconds=stats.prompt_seconds if stats.generated_tokens else seconds,
            generation_seconds=stats.generation_seconds + (seconds if stats.generated_tokens else 0.0),
            reason=generated.reason,
        )
        return generated

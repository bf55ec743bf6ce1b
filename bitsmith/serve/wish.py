"""What a client asks of the engine, and what it gets back. Nothing here knows HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bitsmith.runtime.sampling import DEFAULT, Sampling

Ended = Literal["end", "stop", "length", "context", "cancelled"]
Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class Drawing:
    """How the tokens of one sequence are drawn.

    sampling: see `Sampling`
    frequency_penalty, presence_penalty: taken from a token's logit for each time, and once, that it was drawn (OpenAI's
        definition)
    bias: added to logits, by token
    top_logprobs: number of likeliest tokens that are told beside each drawn one; None for no log-probabilities
    grammar: a grammar that the text must follow, in llguidance's form; "" for none
    """

    sampling: Sampling = DEFAULT
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    grammar: str = ""


PLAIN = Drawing()


@dataclass(frozen=True)
class Wish:
    """One text to continue.

    prompt: token ids
    max_tokens: at most so many tokens; None: until the context is full
    stops: texts that end the answer; they are no part of it
    number: of the answer among those to one request; with a seed, each has random numbers of its own
    special: whether control tokens stand in the text, as some models write calls of tools with them
    """

    prompt: Sequence[int]
    max_tokens: int | None
    drawing: Drawing = PLAIN
    stops: tuple[str, ...] = ()
    number: int = 0
    special: bool = False


@dataclass(frozen=True)
class Likely:
    """A token, and the natural logarithm of its probability before temperature and all other steps."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer.

    text: may be empty: a character of several tokens, or the beginning of a stop
    tokens: the tokens drawn since the last piece, each with the likeliest ones beside it, if they were asked for
    """

    text: str
    tokens: tuple[tuple[Likely, tuple[Likely, ...]], ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of an answer.

    stop: the text in `Wish.stops` that ended it; "" for none
    reused: tokens of the prompt that were in the cache already
    """

    why: Ended
    prompt_tokens: int
    tokens: int
    reused: int = 0
    stop: str = ""


@dataclass(frozen=True)
class Failed:
    """The answer ends with an error, in words."""

    error: str


Event = Piece | Done | Failed


@dataclass(frozen=True)
class Pooled:
    """The end of a text that was to be embedded. vector: float32 [hidden], of length 1"""

    vector: np.ndarray


PoolEvent = Pooled | Done | Failed

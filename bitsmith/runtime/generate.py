"""Generation: one token after another, for one prompt or a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.runtime.base import AnyCache, AnyDecoder
from bitsmith.runtime.lookup import Lookup
from bitsmith.runtime.sampler import Sampler
from bitsmith.runtime.sampling import DEFAULT, Sampling

MOST_GUESSES = 32
Reason = Literal["end", "length", "context"]


@dataclass(frozen=True)
class Generated:
    """One token, and why it is the last: an end token ("end"), max_tokens reached ("length"), the model's context
    full ("context"); None where more follow.
    """

    token: int
    reason: Reason | None = None


@dataclass(frozen=True)
class Completion:
    """All tokens generated for one prompt, the end token included, and why they stop."""

    tokens: tuple[int, ...]
    reason: Reason


def generate(
    decoder: AnyDecoder,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling = DEFAULT,
    end_ids: Collection[int] = (),
    cache: AnyCache | None = None,
    lookup: int = 0,
) -> Generator[Generated]:
    """Continue a prompt of token ids. Yields tokens as they are drawn; closing the iterator stops the work.

    cache: of one slot, empty or filled with the first tokens of the prompt (fewer than all), with room for what
        follows; None makes one
    lookup: tokens at most that are guessed from the text so far and computed beside the next one, see
        `runtime.lookup`; 0: none
    Raises UsageError at once where the prompt is empty or longer than the context, or max_tokens < 1.
    """
    room = capacity(decoder, len(prompt), max_tokens)
    cache = cache or decoder.new_cache(room)
    check_lookup(decoder, lookup)
    sampler, ends, context = Sampler(sampling, prompt=prompt), frozenset(end_ids), decoder.config.context

    def draw(logits: np.ndarray, count: int) -> Generated:
        token = sampler(logits)
        return Generated(token, _reason(token, count, len(prompt), ends, max_tokens, context))

    return _continue(decoder, prompt, cache, draw) if not lookup else _guessing(decoder, prompt, cache, draw, lookup)


Draw = Callable[[np.ndarray, int], Generated]  # logits float32 [vocab], and the number of the token


def _continue(decoder: AnyDecoder, prompt: Sequence[int], cache: AnyCache, draw: Draw) -> Generator[Generated]:
    logits = decoder.prefill(np.asarray(prompt, np.int64)[None, cache.lengths[0] :], cache)
    for count in itertools.count(1):
        drawn = draw(decoder.numpy(logits)[0], count)
        yield drawn
        if drawn.reason:
            return
        logits = decoder.prefill(np.array([[drawn.token]]), cache)


def _guessing(
    decoder: AnyDecoder, prompt: Sequence[int], cache: AnyCache, draw: Draw, most: int
) -> Generator[Generated]:
    """The same tokens in fewer steps: each step also computes what is guessed, as far as it comes true."""
    tokens, guess = [int(token) for token in prompt], list[int]()
    lookup, count = Lookup(tokens, most), 0
    logits = decoder.numpy(decoder.prefill(np.array([tokens[cache.lengths[0] :]]), cache))
    while True:
        drawn: list[Generated] = []
        for row in logits:
            count += 1
            drawn.append(draw(row, count))
            tokens.append(drawn[-1].token)
            if drawn[-1].reason or len(drawn) > len(guess) or drawn[-1].token != guess[len(drawn) - 1]:
                break
        cache.truncate(0, len(tokens) - 1)  # before anybody sees a token, and may stop
        lookup.learn(len(guess), sum(a.token == b for a, b in zip(drawn, guess, strict=False)))
        yield from drawn
        if drawn[-1].reason:
            return
        guess = lookup.guess(cache.capacity - len(tokens))
        states = decoder.hidden(np.array([[tokens[-1], *guess]]), cache, slots=np.zeros(1, np.int64), single=1)
        logits = decoder.numpy(decoder.logits(states[0]))


def check_lookup(decoder: AnyDecoder, most: int) -> None:
    """Raise UsageError for a number of guesses out of range, or a model that cannot go back where they fail."""
    if not 0 <= most <= MOST_GUESSES:
        raise UsageError(f"--lookup={most}: expected 0 to {MOST_GUESSES} tokens.")
    if most and decoder.config.delta is not None:
        raise UsageError(
            f"--lookup={most}: the model has layers with a state that cannot go back when a guess is wrong; "
            "leave it out."
        )


def generate_batch(
    decoder: AnyDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling = DEFAULT,
    end_ids: Collection[int] = (),
    on_token: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Continue several prompts at once, each in a slot of one cache.

    on_token: called with (prompt's index, token) as tokens are drawn
    Raises UsageError as `generate` does.
    """
    if not prompts:
        return []
    for prompt in prompts:
        capacity(decoder, len(prompt), max_tokens)
    counts = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), int(counts.max())), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    cache = decoder.new_cache(max(capacity(decoder, int(count), max_tokens) for count in counts), batch=len(prompts))
    samplers = [Sampler(sampling, row, prompt=prompt) for row, prompt in enumerate(prompts)]
    ends = frozenset(end_ids)
    drawn: list[list[int]] = [[] for _ in prompts]
    reasons: list[Reason | None] = [None] * len(prompts)
    active = list(range(len(prompts)))  # rows of the next step: sequences that have not ended
    logits = decoder.prefill(tokens, cache, counts=counts)
    while True:
        for row, values in zip(active, decoder.numpy(logits), strict=True):
            token = samplers[row](values)
            drawn[row].append(token)
            reasons[row] = _reason(token, len(drawn[row]), counts[row], ends, max_tokens, decoder.config.context)
            if on_token:
                on_token(row, token)
        active = [row for row in active if reasons[row] is None]
        if not active:
            break
        logits = decoder.prefill(np.array([[drawn[row][-1]] for row in active]), cache, slots=np.array(active))
    return [Completion(tuple(ids), reason) for ids, reason in zip(drawn, reasons, strict=True) if reason]


def capacity(decoder: AnyDecoder, prompt: int, max_tokens: int) -> int:
    """Positions a cache needs to continue `prompt` tokens by `max_tokens`: the last token drawn is never fed.

    Raises UsageError where the prompt is empty or longer than the context, or max_tokens < 1.
    """
    context = decoder.config.context
    if max_tokens < 1:
        raise UsageError(f"max_tokens must be 1 or more, found {max_tokens}.")
    if not 1 <= prompt <= context:
        if prompt == 0:
            raise UsageError("the prompt has no tokens, so there is nothing to continue; give a text.")
        raise UsageError(
            f"the prompt has {prompt:,} tokens, but the context holds {context:,}; shorten it, or give a larger "
            "--context if the model has one."
        )
    return min(context, prompt + max_tokens - 1)


def _reason(
    token: int, count: int, prompt: int, end_ids: frozenset[int], max_tokens: int, context: int
) -> Reason | None:
    """Why the count-th token is the last one; None if it is not."""
    if token in end_ids:
        return "end"
    if count >= max_tokens:
        return "length"
    return "context" if prompt + count > context else None

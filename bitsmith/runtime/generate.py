"""Generation: one token after another, for one prompt or a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.runtime.base import AnyCache, AnyDecoder
from bitsmith.runtime.sampler import Sampler
from bitsmith.runtime.sampling import DEFAULT, Sampling

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
) -> Generator[Generated]:
    """Continue a prompt of token ids. Yields tokens as they are drawn; closing the iterator stops the work.

    cache: of one slot, empty or filled with the first tokens of the prompt (fewer than all), with room for what
        follows; None makes one
    Raises UsageError at once where the prompt is empty or longer than the context, or max_tokens < 1.
    """
    room = capacity(decoder, len(prompt), max_tokens)
    cache = cache or decoder.new_cache(room)
    ids, sampler = np.asarray(prompt, np.int64), Sampler(sampling, prompt=prompt)
    return _continue(decoder, ids, max_tokens, sampler, frozenset(end_ids), cache)


def _continue(
    decoder: AnyDecoder, prompt: np.ndarray, max_tokens: int, sampler: Sampler, end_ids: frozenset[int], cache: AnyCache
) -> Generator[Generated]:
    logits = decoder.prefill(prompt[None, cache.lengths[0] :], cache)
    for count in range(1, max_tokens + 1):
        token = sampler(decoder.numpy(logits)[0])
        reason = _reason(token, count, len(prompt), end_ids, max_tokens, decoder.config.context)
        yield Generated(token, reason)
        if reason:
            return
        logits = decoder.prefill(np.array([[token]]), cache)


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

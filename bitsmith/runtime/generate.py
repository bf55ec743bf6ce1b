"""Generation: choosing tokens from logits, one after another, for one prompt or a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bitsmith.errors import TensorError, UsageError
from bitsmith.runtime.base import AnyCache, AnyDecoder

Reason = Literal["end", "length", "context"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters are llama.cpp's, in its order: top_k, top_p, min_p, temperature.

    temperature: logits are divided by it, after the filters; 0 takes the likeliest token
    top_k: keep the k likeliest tokens; 0 keeps all
    top_p: of these, keep the likeliest until their probabilities sum to this much; 1 keeps all
    min_p: of these, keep tokens at least this share as likely as the likeliest; 0 keeps all
    seed: same seed, same tokens; None draws a new one each time
    Raises UsageError for values out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("temperature", 0 <= self.temperature < np.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "in 0..1"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not sound:
                raise UsageError(f"{name} must be {expected}, found {vars(self)[name]}.")


DEFAULT = Sampling()
GREEDY = Sampling(temperature=0.0)


class Sampler:
    """Draws tokens for one sequence. `row` is its number in a batch: each sequence has its own random numbers."""

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self._sampling = sampling
        self._seed = None if sampling.seed is None else [sampling.seed, row]

    @cached_property
    def _random(self) -> np.random.Generator:
        """Made at the first use: importing numpy.random takes a twentieth of the start time."""
        return np.random.default_rng(self._seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token for logits float [vocab]; computed in float64. Raises TensorError where one is NaN or Inf."""
        logits = np.asarray(logits, np.float64)
        if not np.isfinite(logits).all():
            raise TensorError(
                "the model's logits are not finite: its weights are damaged, see `bitsmith inspect --verify`, or its "
                "keys leave float16's range: give --cache=f32."
            )
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        ids, probabilities = candidates(logits, self._sampling)
        drawn = np.searchsorted(np.cumsum(probabilities), self._random.random() * probabilities.sum(), side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that may be drawn, likeliest first, and their probabilities: int64 [k], float64 [k].

    logits: float64 [vocab], finite; sampling.temperature > 0. Among equally likely tokens the lower id comes first.
    llama.cpp (llama-sampler.cpp): top_p's probabilities are those among the tokens top_k kept, before temperature;
    min_p compares logits with the largest, also before temperature.
    """
    ids = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        smallest = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        ids = np.flatnonzero(logits >= smallest)
    ids = ids[np.argsort(-logits[ids], kind="stable")][: sampling.top_k or None]
    kept = logits[ids]
    if sampling.top_p < 1:
        count = int(np.searchsorted(np.cumsum(_softmax(kept)), sampling.top_p, side="left")) + 1
        kept = kept[:count]
    if sampling.min_p > 0:
        kept = kept[kept >= kept[0] + np.log(sampling.min_p)]
    return ids[: len(kept)], _softmax((kept - kept[0]) / sampling.temperature)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


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
    return _continue(decoder, np.asarray(prompt, np.int64), max_tokens, Sampler(sampling), frozenset(end_ids), cache)


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
    longest, shortest = int(counts.max()), int(counts.min())
    tokens = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    room = min(max_tokens, decoder.config.context - shortest + 1)  # sequences that ended run on with the others
    cache = decoder.new_cache(longest + room - 1, batch=len(prompts))
    samplers = [Sampler(sampling, row) for row in range(len(prompts))]
    ends = frozenset(end_ids)
    drawn: list[list[int]] = [[] for _ in prompts]
    reasons: list[Reason | None] = [None] * len(prompts)
    logits = decoder.prefill(tokens, cache, counts=counts)
    while True:
        values = decoder.numpy(logits)
        for row, prompt in enumerate(prompts):
            if reasons[row]:
                continue
            token = samplers[row](values[row])
            drawn[row].append(token)
            reasons[row] = _reason(token, len(drawn[row]), len(prompt), ends, max_tokens, decoder.config.context)
            if on_token:
                on_token(row, token)
        if all(reasons):
            break
        logits = decoder.prefill(np.array([[row[-1]] for row in drawn]), cache)
    return [Completion(tuple(ids), reason) for ids, reason in zip(drawn, reasons, strict=True) if reason]


def capacity(decoder: AnyDecoder, prompt: int, max_tokens: int) -> int:
    """Positions a cache needs to continue `prompt` tokens by `max_tokens`: the last token drawn is never fed.

    Raises UsageError where the prompt is empty or longer than the context, or max_tokens < 1.
    """
    context = decoder.config.context
    if max_tokens < 1:
        raise UsageError(f"max_tokens must be 1 or more, found {max_tokens}.")
    if not 1 <= prompt <= context:
        raise UsageError(f"a prompt must have 1 to {context} tokens (the model's context), found {prompt}.")
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

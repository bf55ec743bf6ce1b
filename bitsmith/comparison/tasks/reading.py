"""Logits at the ends of many rows of tokens. What rows begin with alike is computed once.

A question with four long choices is four rows with one beginning; the questions of a subject begin with the same
examples. A batch of rows goes through three steps, each on slots of one cache: what all its rows share, which the next
batch may share too; what neighbours share; the rest of each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitsmith.evaluation.measure import BATCH_LOGITS, BATCH_TOKENS

if TYPE_CHECKING:
    from bitsmith.runtime.base import AnyCache
    from bitsmith.runtime.kernel import Tensor
    from bitsmith.runtime.language_model import LanguageModel

_POSITIONS = 2 * BATCH_TOKENS  # of the cache of a batch; more only if one row needs it
_LEAST = 8  # tokens that are worth a step of their own


class Row(NamedTuple):
    """Token ids that a model reads, and the number of its last positions whose logits are wanted, 1 or more."""

    tokens: tuple[int, ...]
    wanted: int

    @property
    def free(self) -> int:
        """Number of tokens before those positions."""
        return len(self.tokens) - self.wanted


@dataclass(frozen=True)
class _Group:
    """Neighbours in a batch, rows first to stop - 1, that share `tokens`."""

    first: int
    stop: int
    tokens: tuple[int, ...]


def end_logits(model: LanguageModel, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """For some rows at a time, in any order: their numbers, and the logits of each, float32 [wanted, vocab]."""
    for capacity, numbers in _buckets(rows):
        most = max(1, _POSITIONS // capacity - 1)
        reader = _Reader(model, capacity, min(most, len(numbers)))
        for start in range(0, len(numbers), most):
            batch = numbers[start : start + most]
            yield from _projected(model, batch, rows, reader.states([rows[number] for number in batch]))


def _buckets(rows: Sequence[Row]) -> Iterator[tuple[int, list[int]]]:
    """Rows of about the same length, at most a factor of two apart, sorted by their tokens; and the longest length."""
    found: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault((len(row.tokens) - 1).bit_length(), []).append(number)
    for _, numbers in sorted(found.items(), reverse=True):
        numbers.sort(key=lambda number: rows[number].tokens)
        yield max(len(rows[number].tokens) for number in numbers), numbers


def _projected(
    model: LanguageModel, batch: Sequence[int], rows: Sequence[Row], states: Tensor
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Logits of so many rows at a time that memory stays bounded. states: [positions wanted of all rows, hidden]"""
    ends = np.cumsum([rows[number].wanted for number in batch]).tolist()
    most = max(1, BATCH_LOGITS // model.config.vocab)
    start = begin = 0
    while start < len(batch):
        stop = max(start + 1, int(np.searchsorted(ends, begin + most, side="right")))
        logits = model.decoder.numpy(model.decoder.logits(states[begin : ends[stop - 1]]))
        cuts = [end - begin for end in ends[start : stop - 1]]
        yield list(batch[start:stop]), np.split(np.asarray(logits, np.float32), cuts)
        start, begin = stop, ends[stop - 1]


class _Reader:
    """A cache whose slot 0 keeps what the rows of a batch share; the others hold one row each."""

    def __init__(self, model: LanguageModel, capacity: int, rows: int) -> None:
        self._decoder = model.decoder
        self._cache: AnyCache = model.decoder.new_cache(capacity, batch=rows + 1)
        self._held: tuple[int, ...] = ()  # tokens of slot 0
        longest = [rope.original_context for rope in model.config.ropes if rope.scaling == "longrope"]
        self._shares = all(capacity <= context for context in longest)  # beyond, positions depend on a row's length

    def states(self, rows: Sequence[Row]) -> Tensor:
        """Hidden states of the wanted positions of all rows, float32 [positions, hidden]. Neighbours begin alike."""
        shared = self._hold(_common(rows)) if self._shares else ()
        groups = _groups(rows, len(shared)) if self._shares else [_Group(n, n + 1, ()) for n in range(len(rows))]
        begun = [each for each in groups if len(each.tokens) > len(shared)]
        for group in groups:
            self._copy(0, group.first + 1, len(shared))
        if begun:
            tokens = [group.tokens[len(shared) :] for group in begun]
            self._step(tokens, [group.first + 1 for group in begun])
        done = np.zeros(len(rows), np.int64)
        for group in groups:
            length = max(len(group.tokens), len(shared))
            done[group.first : group.stop] = length
            for row in range(group.first + 1, group.stop):
                self._copy(group.first + 1, row + 1, length)
        rest = [row.tokens[start:] for row, start in zip(rows, done.tolist(), strict=True)]
        states = self._step(rest, list(range(1, len(rows) + 1)))
        ends = [(len(each) - row.wanted, len(each)) for each, row in zip(rest, rows, strict=True)]
        places = np.concatenate([np.arange(*each) for each in ends])
        return states[np.repeat(np.arange(len(rows)), [row.wanted for row in rows]), places]

    def _hold(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Fill slot 0 with these tokens; of what it holds already, no more is computed than differs."""
        if len(tokens) < _LEAST:
            return ()
        kept = self._cache.reusable(0, _alike(self._held, tokens))
        self._cache.truncate(0, kept)
        self._held = tokens
        if kept < len(tokens):
            self._step([tokens[kept:]], [0])
        return tokens

    def _copy(self, source: int, slot: int, length: int) -> None:
        if length:
            self._cache.copy_slot(source, slot, length)
        else:
            self._cache.truncate(slot, 0)

    def _step(self, tokens: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Hidden states, float32 [rows, longest, hidden]; those behind the end of a row have no meaning."""
        counts = np.array([len(each) for each in tokens], np.int64)
        filled = np.zeros((len(tokens), int(counts.max())), np.int64)
        for row, each in zip(filled, tokens, strict=True):
            row[: len(each)] = each
        return self._decoder.hidden(filled, self._cache, slots=np.array(slots, np.int64), counts=counts)


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _common(rows: Sequence[Row]) -> tuple[int, ...]:
    """What all rows begin with, before the positions that are wanted. In sorted rows the outer two differ first."""
    length = min(_alike(rows[0].tokens, rows[-1].tokens), *(row.free for row in rows), len(rows[0].tokens))
    return rows[0].tokens[:length]


def _groups(rows: Sequence[Row], shared: int) -> list[_Group]:
    """Neighbours that share more than all rows do: at least half of what is left of the first of them."""
    found: list[_Group] = []
    first = 0
    while first < len(rows):
        left = len(rows[first].tokens) - shared
        least, length, stop = shared + max(_LEAST, left // 2), rows[first].free, first + 1
        while stop < len(rows):
            common = min(length, rows[stop].free, _alike(rows[first].tokens, rows[stop].tokens))
            if common < least:
                break
            length, stop = common, stop + 1
        found.append(_Group(first, stop, rows[first].tokens[:length] if stop > first + 1 else ()))
        first = stop
    return found

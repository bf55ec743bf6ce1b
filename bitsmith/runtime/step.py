"""One forward step: new tokens for some slots of a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.runtime.kernel import Tensor
from bitsmith.runtime.tokens import checked_tokens

if TYPE_CHECKING:
    from bitsmith.models.arch.config import ModelConfig
    from bitsmith.runtime.base import AnyCache


@dataclass(frozen=True)
class Step:
    """Tokens of one forward pass. Row i adds counts[i] tokens to slots[i], which holds starts[i] tokens.

    tokens: int64 [rows, n]; rows with fewer than n tokens have filler on the right
    slots: int64 [rows], distinct
    starts: int64 [rows]
    counts: int64 [rows], each in 1..n
    stops: int64 [rows], starts + counts: the lengths of the slots after the step
    full: whether all counts are n
    """

    tokens: np.ndarray
    slots: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    stops: np.ndarray
    full: bool

    def positions(self) -> np.ndarray:
        """int64 [rows, n]; filler has the position of its row's last token."""
        found: np.ndarray = self.starts[:, None] + np.minimum(np.arange(self.tokens.shape[1]), self.counts[:, None] - 1)
        return found

    def chunks(self, size: int) -> Iterator[tuple[np.ndarray, Step]]:
        """The same tokens in steps of at most `size` tokens a row. A step has only the rows that still have tokens."""
        for first in range(0, int(self.counts.max()), size):
            rows = np.flatnonzero(self.counts > first)
            counts, starts = np.minimum(self.counts[rows] - first, size), self.starts[rows] + first
            most = int(counts.max())
            tokens = np.ascontiguousarray(self.tokens[rows, first : first + most])
            yield rows, Step(tokens, self.slots[rows], starts, counts, starts + counts, int(counts.min()) == most)


def checked_step(
    tokens: np.ndarray, vocab: int, cache: AnyCache, slots: np.ndarray | None = None, counts: np.ndarray | None = None
) -> Step:
    """The step that adds `tokens` to `cache`.

    tokens: integers [rows, n]
    slots: integers [rows]; None: all slots of the cache, in order
    counts: integers [rows]; None: n for each row
    Raises UsageError for tokens that are none or not below `vocab`, slots that are not the cache's or named twice,
    counts outside 1..n, and positions beyond the cache.
    """
    ids = checked_tokens(tokens, vocab)
    rows, n = ids.shape
    if slots is None:
        if rows != cache.batch:
            raise UsageError(f"a cache of {cache.batch} slots got {rows} rows of tokens; name their slots with slots=.")
        chosen, starts = _order(rows), cache.lengths.copy()
    else:
        chosen = _one_a_row("slots", slots, rows)
        if chosen.min() < 0 or chosen.max() >= cache.batch or len(set(chosen.tolist())) < rows:
            raise UsageError(f"slots must be distinct and lie in 0..{cache.batch - 1}, found {chosen.tolist()}.")
        starts = cache.lengths[chosen]
    if counts is None:
        real, full = _alike(rows, n), True
    else:
        real = _one_a_row("counts", counts, rows)
        if real.min() < 1 or real.max() > n:
            raise UsageError(f"counts must lie in 1..{n}, the tokens of a row, found {real.tolist()}.")
        full = int(real.min()) == n
    stops = starts + real
    most = max(stops.tolist())  # faster than numpy's for few rows
    if most > cache.capacity:
        raise UsageError(f"a cache of {cache.capacity} positions cannot hold {most}.")
    return Step(ids, chosen, starts, real, stops, full)


def refuse_without_cache(slots: np.ndarray | None, counts: np.ndarray | None) -> None:
    """Raise UsageError for slots or counts: without a cache, rows begin their sequences and filler changes nothing."""
    if slots is not None or counts is not None:
        raise UsageError("slots and counts need a cache.")


def run_in_chunks(
    step: Step, size: int, run: Callable[[Step], Tensor], array: Callable[[np.ndarray], Tensor]
) -> Tensor:
    """Run a step at most `size` tokens a row at a time; the states of each row's last token, float32 [rows, width].

    run: step -> states float32 [rows, n, width]
    array: a numpy array as an index of those
    """
    if step.tokens.shape[1] <= size:
        return _last_states(step, run(step), array)
    last: Tensor = None
    for rows, part in step.chunks(size):
        states = _last_states(part, run(part), array)
        if len(rows) == len(step.counts):
            last = states
        else:
            last[array(rows)] = states
    return last


def _last_states(step: Step, states: Tensor, array: Callable[[np.ndarray], Tensor]) -> Tensor:
    """The states of the last token of each row: [rows, n, width] -> [rows, width]."""
    if step.full:
        return states[:, -1]
    return states[array(np.arange(len(step.counts))), array(step.counts - 1)]


def checked_length(lengths: np.ndarray, slot: int, length: int) -> int:
    """`length`, checked. Raises UsageError if there is no such slot, or if it holds fewer positions."""
    if not 0 <= slot < len(lengths):
        raise UsageError(f"slots lie in 0..{len(lengths) - 1}, found {slot}.")
    if not 0 <= length <= lengths[slot]:
        raise UsageError(f"a slot filled to {lengths[slot]} cannot be cut to {length}.")
    return length


def reusable(config: ModelConfig, lengths: np.ndarray, slot: int, length: int) -> int:
    """See `AnyCache.reusable`: a state is what all tokens left, so that it cannot be cut."""
    return length if config.delta is None or length == lengths[slot] else 0


def checked_cut(config: ModelConfig, lengths: np.ndarray, slot: int, length: int) -> int:
    """`length`, checked. Raises UsageError as `checked_length` does, and where `reusable` is less."""
    if reusable(config, lengths, slot, checked_length(lengths, slot, length)) != length:
        raise UsageError(
            f"a slot filled to {lengths[slot]} cannot be cut to {length}: the model has layers with a state that all "
            "tokens before went into. Cut it to 0 and compute it again."
        )
    return length


@lru_cache(maxsize=64)
def _order(rows: int) -> np.ndarray:
    """0 .. rows - 1, kept: making small arrays takes a percent of a small model's step."""
    found = np.arange(rows)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=64)
def _alike(rows: int, n: int) -> np.ndarray:
    """`rows` times n, kept."""
    found = np.full(rows, n)
    found.flags.writeable = False
    return found


def _one_a_row(name: str, values: np.ndarray, rows: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (rows,) or found.dtype.kind not in "iu":
        raise UsageError(f"{name} must be {rows} integers, one for each row of tokens, found {found.tolist()}.")
    return np.ascontiguousarray(found, np.int64)

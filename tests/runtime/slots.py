"""A day of a cache of three slots, for any decoder: sequences of different lengths that start and end apart."""

from __future__ import annotations

import numpy as np

from bitsmith.runtime.base import AnyDecoder

CAPACITY = 45


def sequences(vocab: int) -> np.ndarray:
    """int64 [4, 40]."""
    return np.random.default_rng(3).integers(0, vocab, (4, 40))


def run_slots(decoder: AnyDecoder) -> list[tuple[int, int, np.ndarray]]:
    """Feed four sequences through three slots; (sequence, position, logits float32 [vocab]) of every token fed."""
    texts = sequences(decoder.config.vocab)
    cache = decoder.new_cache(CAPACITY - 5, batch=3)
    held = {0: 0, 1: 1, 2: 2}  # slot -> sequence
    found: list[tuple[int, int, np.ndarray]] = []

    def feed(rows: dict[int, int]) -> None:
        """So many more tokens for these slots, filler behind them."""
        slots, counts = np.array(list(rows)), np.array(list(rows.values()))
        starts = cache.lengths[slots]
        tokens = np.full((len(rows), counts.max()), 1)
        for row, slot in enumerate(slots):
            tokens[row, : counts[row]] = texts[held[slot], starts[row] : starts[row] + counts[row]]
        logits = decoder.numpy(decoder.forward(tokens, cache, slots=slots, counts=counts))
        assert (cache.lengths[slots] == starts + counts).all()
        for row, slot in enumerate(slots):
            found.extend((held[slot], int(starts[row]) + i, logits[row, i]) for i in range(counts[row]))

    feed({0: 12, 1: 1, 2: 7})  # three prompts
    feed({0: 1, 1: 1, 2: 1})  # a step of all, each at its place
    feed({2: 3, 0: 1})  # out of order, and one rests
    cache.truncate(1, 1)
    feed({1: 1, 2: 1})
    cache.truncate(0, 0)
    held[0] = 3
    cache = cache.grown(CAPACITY)
    feed({1: 1, 0: 20, 2: 2})  # a prompt between steps of others
    feed({0: 1})
    feed({0: 19, 1: 36})
    cache.truncate(2, 4)
    feed({2: 5})
    assert cache.lengths.tolist() == [40, 39, 9]
    return found

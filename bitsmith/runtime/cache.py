"""The cache of the torch decoder: fixed buffers for keys and values, and states, with one slot for each sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.kernel import Ops, Tensor
from bitsmith.runtime.step import Step, checked_cut, reusable


@dataclass(frozen=True)
class Cells:
    """Where the keys and values of one step go, and which slots it reads.

    slots: int64 [rows]; None: all slots of the cache, in order
    start: the first new position of row 0
    moves: int64 [tokens] each, for every real token: its row and column in the step, its slot and position.
        None: all slots get as many tokens, from `start` on
    counts: int64 [rows], number of real tokens of each row; None if all are real
    """

    slots: Tensor | None
    start: int
    moves: tuple[Tensor, Tensor, Tensor, Tensor] | None
    counts: Tensor | None = None


class Cache:
    """Keys and values of `batch` slots, float32 [batch, kv_heads, capacity, head_dim] a layer each.

    Layers with a state keep that instead, see `GatedDeltaNet`: it is what all tokens left, and cannot be cut.
    keys, values: by layer; layers that use those of others have none
    lengths: int64 [batch], number of filled positions of each slot
    """

    def __init__(self, config: ModelConfig, ops: Ops, capacity: int, *, batch: int = 1) -> None:
        self._config, self._ops = config, ops
        shapes = [(batch, spec.kv_heads, capacity, spec.head_dim) for spec in config.specs]
        specs = enumerate(config.specs)
        self._own = [layer for layer, spec in specs if spec.keys_of is None and spec.mixer == "attention"]
        self.keys = {layer: ops.zeros(shapes[layer]) for layer in self._own}
        self.values = {layer: ops.zeros(shapes[layer]) for layer in self._own}
        recurrent = config.delta.layers if config.delta is not None else ()
        self.states = {layer: _states(config, ops, batch) for layer in recurrent}
        self.capacity = capacity
        self.batch = batch
        self.lengths = np.zeros(batch, np.int64)

    def cells(self, step: Step) -> Cells:
        """The places of the keys and values of a step."""
        array, n, start = self._ops.array, step.tokens.shape[1], int(step.starts[0])
        ordered = np.array_equal(step.slots, np.arange(self.batch))
        if ordered and step.full and (step.starts == start).all():
            return Cells(None, start, None)
        counts = None if step.full else array(step.counts)
        rows, columns = np.nonzero(np.arange(n) < step.counts[:, None])
        moves = array(rows), array(columns), array(step.slots[rows]), array(step.starts[rows] + columns)
        return Cells(None if ordered else array(step.slots), start, moves, counts)

    def store(self, layer: int, cells: Cells, keys: Tensor, values: Tensor) -> None:
        """Write a step's keys and values [rows, kv_heads, n, head_dim]; `lengths` stay.

        The decoder adds to `lengths` once all layers are written.
        """
        for kept, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if cells.moves is None:
                kept[:, :, cells.start : cells.start + new.shape[2]] = new
            else:
                rows, columns, slots, positions = cells.moves
                kept[slots, :, positions] = new.swapaxes(1, 2)[rows, columns]

    def read(self, layer: int, cells: Cells, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions low .. high - 1: [rows, kv_heads, high - low, head_dim] each.

        Those beyond what a slot holds are left from before, or zeros.
        """
        keys, values = self.keys[layer][:, :, low:high], self.values[layer][:, :, low:high]
        return (keys, values) if cells.slots is None else (keys[cells.slots], values[cells.slots])

    def state(self, layer: int, cells: Cells) -> tuple[Tensor, ...]:
        """The state of a layer before a step, for each row."""
        kept = self.states[layer]
        return kept if cells.slots is None else tuple(each[cells.slots] for each in kept)

    def keep(self, layer: int, cells: Cells, state: tuple[Tensor, ...]) -> None:
        """Write the state of a layer after a step."""
        for kept, new in zip(self.states[layer], state, strict=True):
            kept[slice(None) if cells.slots is None else cells.slots] = new

    def reusable(self, slot: int, length: int) -> int:
        """See `AnyCache.reusable`."""
        return reusable(self._config, self.lengths, slot, length)

    def truncate(self, slot: int, length: int) -> None:
        """Keep only the first `length` positions of a slot; 0 empties it.

        Raises UsageError where there is no such slot, for a length beyond what is filled, and for one that the states
        of the model cannot go back to, see `reusable`.
        """
        self.lengths[slot] = checked_cut(self._config, self.lengths, slot, length)
        if length == 0:
            self._clear(slot)

    def copy_slot(self, source: int, slot: int, length: int) -> None:
        """Fill a slot with the first `length` positions of another one. Raises UsageError as `truncate` does."""
        kept = checked_cut(self._config, self.lengths, source, length)
        for each in (*self.keys.values(), *self.values.values()):
            each[slot, :, :kept] = each[source, :, :kept]
        for state in self.states.values():
            for each in state:
                each[slot] = each[source]
        self.lengths[slot] = kept

    def give_up(self, step: Step) -> None:
        """Empty the slots of a step that ended before all layers, if layers have states; keys and values are whole."""
        if self._config.delta is not None:
            for slot in step.slots:
                self.lengths[slot] = 0
                self._clear(int(slot))

    def _clear(self, slot: int) -> None:
        for state in self.states.values():
            for kept in state:
                kept[slot] = 0.0

    def grown(self, capacity: int) -> Cache:
        """A copy with room for `capacity` positions a slot. Raises UsageError if a slot holds more."""
        filled = int(self.lengths.max())
        if filled > capacity:
            raise UsageError(f"a cache of {capacity} positions cannot hold {filled}.")
        bigger = Cache(self._config, self._ops, capacity, batch=self.batch)
        for layer in self._own:
            bigger.keys[layer][:, :, :filled] = self.keys[layer][:, :, :filled]
            bigger.values[layer][:, :, :filled] = self.values[layer][:, :, :filled]
        for layer, state in self.states.items():
            for kept, own in zip(bigger.states[layer], state, strict=True):
                kept[:] = own
        bigger.lengths[:] = self.lengths
        return bigger


def _states(config: ModelConfig, ops: Ops, batch: int) -> tuple[Tensor, Tensor]:
    """The empty state of a gated delta net: the last inputs of its convolution, and its matrices."""
    net = config.delta
    assert net is not None
    return (
        ops.zeros((batch, net.taps - 1, net.mixed)),
        ops.zeros((batch, net.value_heads, net.key_dim, net.value_dim)),
    )

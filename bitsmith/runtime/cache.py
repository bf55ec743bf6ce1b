"""The key-value cache: static buffers, filled from the left, the same length for every sequence of a batch."""

from __future__ import annotations

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.kernel import Ops, Tensor
from bitsmith.runtime.tokens import checked_padding


class Cache:
    """Keys and values of `capacity` positions a layer, float32 [batch, kv_heads, capacity, head_dim] each.

    length: positions filled so far
    padding: int64 [batch], how many of the first positions are padding (batches of unequal prompts are padded on
        the left, so that all end at the same place)
    """

    def __init__(
        self, config: ModelConfig, ops: Ops, capacity: int, *, batch: int = 1, padding: np.ndarray | None = None
    ) -> None:
        self._config, self._ops = config, ops
        shape = (batch, config.kv_heads, capacity, config.head_dim)
        self.keys = [ops.zeros(shape) for _ in range(config.layers)]
        self.values = [ops.zeros(shape) for _ in range(config.layers)]
        self.capacity = capacity
        self.batch = batch
        self.padding = checked_padding(padding, batch)
        self.length = 0

    def store(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write keys and values [batch, kv_heads, n, head_dim] behind the filled positions; `length` stays.

        The decoder sets `length` once all layers are written. Raises UsageError where they do not fit.
        """
        stop = self.length + keys.shape[2]
        if stop > self.capacity:
            raise UsageError(f"a cache of {self.capacity} positions cannot hold {stop}.")
        self.keys[layer][:, :, self.length : stop] = keys
        self.values[layer][:, :, self.length : stop] = values

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on. Raises UsageError for a length beyond what is filled."""
        if not 0 <= length <= self.length:
            raise UsageError(f"a cache filled to {self.length} cannot be cut to {length}.")
        self.length = length

    def grown(self, capacity: int) -> Cache:
        """A copy with room for `capacity` positions, at least those filled."""
        bigger = Cache(self._config, self._ops, capacity, batch=self.batch, padding=self.padding)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            bigger.store(layer, keys[:, :, : self.length], values[:, :, : self.length])
        bigger.length = self.length
        return bigger

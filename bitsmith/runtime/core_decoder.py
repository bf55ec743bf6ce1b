"""The decoder on the C++ core: packed weights, numpy in and out, no torch.

The same network as `runtime.decoder.Decoder`; all layers of a pass run in one call (csrc/run/model.cpp). `core_loader`
makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import FileError, UsageError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.rope import long_frequencies, rope_frequencies, rope_magnitude
from bitsmith.runtime.layer_inputs import LayerTable
from bitsmith.runtime.step import (
    Step,
    checked_cut,
    checked_step,
    refuse_without_cache,
    reusable,
    run_in_chunks,
)
from bitsmith.runtime.tokens import checked_tokens
from bitsmith.system.core import core
from bitsmith.system.core_choices import CoreChoices


class CoreCache:
    """Keys and values, and the rotations of all positions; see `runtime.base.AnyCache`.

    type: "f16", "q8_0" (blocks of 32 int8 with a float16 scale), or "f32"
    """

    def __init__(self, config: ModelConfig, capacity: int, *, type: str, batch: int = 1) -> None:
        self.capacity, self.batch = capacity, batch
        self.lengths = np.zeros(batch, np.int64)
        self._config, self._type = config, type
        recurrent = config.delta.layers if config.delta is not None else ()
        states = [config.delta.state if config.delta and layer in recurrent else 0 for layer in range(config.layers)]
        heads = [
            (0 if spec.keys_of is not None or spec.mixer == "delta" else spec.kv_heads, spec.head_dim)
            for spec in config.specs
        ]
        rotations = [_rotation(rope, rope_frequencies(rope), capacity) for rope in config.ropes]
        self.handle = _core().Cache(heads, batch, capacity, type, rotations, states)
        for number, rope in enumerate(config.ropes):
            if rope.scaling == "longrope" and capacity > rope.original_context:
                longer = _rotation(rope, long_frequencies(rope), capacity)
                self.handle.set_longer(number, rope.original_context, *longer)

    def reusable(self, slot: int, length: int) -> int:
        """See `AnyCache.reusable`."""
        return reusable(self._config, self.lengths, slot, length)

    def truncate(self, slot: int, length: int) -> None:
        """Keep only the first `length` positions of a slot; 0 empties it. Raises as `AnyCache.truncate`."""
        self.lengths[slot] = checked_cut(self._config, self.lengths, slot, length)

    def copy_slot(self, source: int, slot: int, length: int) -> None:
        """Fill a slot with the first `length` positions of another one. Raises as `AnyCache.copy_slot`."""
        kept = checked_cut(self._config, self.lengths, source, length)
        self.handle.copy_slot(source, slot, kept)
        self.lengths[slot] = kept

    def grown(self, capacity: int) -> CoreCache:
        """A copy with room for `capacity` positions a slot. Raises UsageError if a slot holds more."""
        if self.lengths.max() > capacity:
            raise UsageError(f"a cache of {capacity} positions cannot hold {self.lengths.max()}.")
        bigger = CoreCache(self._config, capacity, type=self._type, batch=self.batch)
        bigger.handle.copy(self.handle, self.lengths)
        bigger.lengths[:] = self.lengths
        return bigger


def _rotation(rope: Rope, frequencies: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every position, float32 [capacity, dim / 2] each."""
    angles = np.arange(capacity, dtype=np.float32)[:, None] * frequencies
    magnitude = np.float32(rope_magnitude(rope))
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


class CoreDecoder:
    """See `runtime.base.AnyDecoder`. Everything it returns is numpy, float32.

    cache_type: type of the caches that `new_cache` makes, see `CoreCache`
    choices: what it runs on
    output_norm: weights of the final norm, float32 [hidden]
    table: the table of the embeddings of layers, if the model has them
    maps: the mapped files of float matrices. Every result raises FileError once one of them has lost bytes: another
        program cut it short, or the disk fails.
    """

    def __init__(
        self,
        config: ModelConfig,
        model: Any,
        token_bytes: int,
        *,
        cache_type: str,
        maps: Mapping[Path, Any],
        choices: CoreChoices,
        output_norm: np.ndarray,
        table: LayerTable | None = None,
    ) -> None:
        self.config = config
        self.choices = choices
        self.token_bytes = token_bytes
        self.cache_type = cache_type
        self._model = model
        self._maps = maps
        self._table = table
        self._output_norm = output_norm

    def times(self) -> dict[str, float]:
        """Seconds that forward passes have taken so far: products with matrices, attention, and all else."""
        total, products, attention = self._model.times()
        return {"products": products, "attention": attention, "rest": total - products - attention}

    def new_cache(self, capacity: int, *, batch: int = 1) -> CoreCache:
        """An empty cache of `batch` slots."""
        return CoreCache(self.config, capacity, type=self.cache_type, batch=batch)

    def forward(
        self,
        tokens: np.ndarray,
        cache: CoreCache | None = None,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """See `Decoder.forward`: float32 [rows, n - first, vocab]."""
        return self.logits(self.hidden(tokens, cache, slots=slots, counts=counts)[:, first:])

    def hidden(
        self,
        tokens: np.ndarray,
        cache: CoreCache | None = None,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        single: int | None = None,
    ) -> np.ndarray:
        """The hidden states after the last layer, before the final norm: float32 [rows, n, hidden], 0 for filler.

        single: see `AnyDecoder.hidden`
        """
        if cache is None:
            refuse_without_cache(slots, counts)
            ids = checked_tokens(tokens, self.config.vocab)
            cache = self.new_cache(ids.shape[1], batch=ids.shape[0])
        return self._step(checked_step(tokens, self.config.vocab, cache, slots, counts), cache, single)

    def normed(self, hidden: np.ndarray) -> np.ndarray:
        """The final norm: float32 [..., hidden] -> the same."""
        mean = np.square(hidden).mean(axis=-1, keepdims=True, dtype=np.float32)
        normed: np.ndarray = hidden / np.sqrt(mean + np.float32(self.config.norm_eps)) * self._output_norm
        return normed

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Final norm and output projection: float32 [..., hidden] -> [..., vocab]."""
        rows: np.ndarray = self._model.logits(np.ascontiguousarray(hidden))
        self._check_maps()
        if self.config.logit_divisor != 1.0:
            rows /= np.float32(self.config.logit_divisor)
        if self.config.logit_softcap:
            cap = np.float32(self.config.logit_softcap)
            rows = np.tanh(rows / cap) * cap
        return rows.reshape(*hidden.shape[:-1], -1)

    def prefill(
        self,
        tokens: np.ndarray,
        cache: CoreCache,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        chunk: int = 512,
    ) -> np.ndarray:
        """See `Decoder.prefill`: float32 [rows, vocab]."""
        step = checked_step(tokens, self.config.vocab, cache, slots, counts)
        return self.logits(run_in_chunks(step, chunk, lambda part: self._step(part, cache), self.numpy))

    def _step(self, step: Step, cache: CoreCache, single: int | None = None) -> np.ndarray:
        rows = None if self._table is None else self._table.gather(step.tokens)
        if self.config.delta is not None:  # stopped between layers, their states belong to different tokens
            cache.lengths[step.slots] = 0
        try:
            states: np.ndarray = self._model.hidden(
                step.tokens, step.slots, step.starts, step.counts, cache.handle, rows, single
            )
        except RuntimeError as error:  # experts are read on demand
            raise FileError(
                f"experts of the model cannot be read: {error} Another program may be writing to it."
            ) from None
        self._check_maps()
        cache.lengths[step.slots] = step.stops
        return states

    def _check_maps(self) -> None:
        for path, mapping in self._maps.items():
            if mapping.lost:
                raise FileError(
                    f"{path} lost bytes while the model was running: another program cut it short or is writing it, or "
                    "the disk fails. Wait until the file is whole and start again."
                )

    def numpy(self, x: np.ndarray) -> np.ndarray:
        """The same."""
        return x


def _core() -> Any:
    module = core()
    assert module is not None
    return module

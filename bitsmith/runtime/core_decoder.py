"""The decoder on the C++ core: packed weights, numpy in and out, no torch.

The same network as `runtime.decoder.Decoder`; all layers of a pass run in one call (csrc/run/model.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import FileError, UsageError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.rope import rope_frequencies, rope_magnitude
from bitsmith.runtime import reading
from bitsmith.runtime.choosing import choose
from bitsmith.runtime.core_network import linear_places, variation
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.step import (
    Step,
    checked_cut,
    checked_step,
    refuse_without_cache,
    reusable,
    run_in_chunks,
)
from bitsmith.runtime.tokens import checked_tokens
from bitsmith.runtime.types import FLOATS, PACKED
from bitsmith.runtime.weights import HEAD_NORMS, WeightReader
from bitsmith.system.core import core
from bitsmith.system.core_choices import CoreChoices
from bitsmith.system.progress import Progress, Report, silent

_SLAB_WEIGHTS = 4 << 20  # weights decoded at a time: 16 MB of float32


class CoreCache:
    """Keys and values, and the rotations of all positions; see `runtime.base.AnyCache`.

    type: "f16", "q8_0" (blocks of 32 int8 with a float16 scale), or "f32"
    """

    def __init__(self, config: ModelConfig, capacity: int, *, type: str, batch: int = 1) -> None:
        self.capacity, self.batch = capacity, batch
        self.lengths = np.zeros(batch, np.int64)
        self._config, self._type = config, type
        shape = (config.layers, batch, config.kv_heads, config.head_dim, capacity)
        self.handle = _core().Cache(*shape, type, *_rotation(config.rope, capacity))
        if config.local_rope is not None:
            self.handle.set_more(*_rotation(config.local_rope, capacity))

    def reusable(self, slot: int, length: int) -> int:
        """See `AnyCache.reusable`."""
        return reusable(self._config, self.lengths, slot, length)

    def truncate(self, slot: int, length: int) -> None:
        """Keep only the first `length` positions of a slot; 0 empties it. Raises as `AnyCache.truncate`."""
        self.lengths[slot] = checked_cut(self._config, self.lengths, slot, length)

    def grown(self, capacity: int) -> CoreCache:
        """A copy with room for `capacity` positions a slot. Raises UsageError if a slot holds more."""
        if self.lengths.max() > capacity:
            raise UsageError(f"a cache of {capacity} positions cannot hold {self.lengths.max()}.")
        bigger = CoreCache(self._config, capacity, type=self._type, batch=self.batch)
        bigger.handle.copy(self.handle, self.lengths)
        bigger.lengths[:] = self.lengths
        return bigger


def _rotation(rope: Rope, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every position, float32 [capacity, dim / 2] each."""
    angles = np.arange(capacity, dtype=np.float32)[:, None] * rope_frequencies(rope)
    magnitude = np.float32(rope_magnitude(rope))
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


class CoreDecoder:
    """See `runtime.base.AnyDecoder`. Everything it returns is numpy, float32.

    cache_type: type of the caches that `new_cache` makes, see `CoreCache`
    choices: what it runs on
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
    ) -> None:
        self.config = config
        self.choices = choices
        self.token_bytes = token_bytes
        self.cache_type = cache_type
        self._model = model
        self._maps = maps

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
    ) -> np.ndarray:
        """The hidden states after the last layer, before the final norm: float32 [rows, n, hidden], 0 for filler."""
        if cache is None:
            refuse_without_cache(slots, counts)
            ids = checked_tokens(tokens, self.config.vocab)
            cache = self.new_cache(ids.shape[1], batch=ids.shape[0])
        return self._step(checked_step(tokens, self.config.vocab, cache, slots, counts), cache)

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

    def _step(self, step: Step, cache: CoreCache) -> np.ndarray:
        states: np.ndarray = self._model.hidden(step.tokens, step.slots, step.starts, step.counts, cache.handle)
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


def load_core(
    config: ModelConfig,
    read: WeightReader,
    *,
    threads: int,
    exact: bool,
    fine: bool = False,
    cache_type: str = "f16",
    isa: str | None = None,
    report: Report = silent,
) -> CoreDecoder:
    """Read every tensor and make it ready for products.

    Matrices of ggml's block types (PACKED), integers by groups and NF4 stay packed, interleaved by 16 rows; floats are
    mapped from their file where they lie in one piece; everything else is decoded to float32.

    exact: inputs of products stay float32; otherwise those of packed matrices are rounded in blocks of 32, to int8 in
        prompts and to 15 bits where a single row is computed
    fine: those of packed matrices in prompts are rounded to 15 bits, too: prompts take twice the time
    isa: instruction set; None: the best, or the one BITSMITH_ISA names
    Raises FileError where a file ends too early.
    """
    module = _core()
    isa = isa or module.isa()
    loader = _Loader(read, module.Pool(threads))
    model = module.Model(
        config.hidden,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.norm_eps,
        config.rope.interleaved,
        exact,
        fine,
        isa,
        loader.pool,
    )
    try:
        model.set_variation(**variation(config))
        for layer in range(config.layers):
            report(Progress("load", layer, config.layers, "layers", f"blk.{layer}"))
            _add_block(model, loader, config, layer)
        loaded = loader.bytes
        embedding = loader.factor("token_embd.weight") if config.tied else loader.matrix("token_embd.weight")
        output = embedding if config.tied else loader.factor("output.weight")
        model.set_ends(embedding, loader.vector("output_norm.weight"), output)
    finally:
        loader.close()
    report(Progress("load", config.layers, config.layers, "layers"))
    row = 0 if config.tied else embedding.row_bytes
    choices = choose(module, model, loader.matrices, isa, loader.pool, exact=exact, fine=fine)
    size = loaded + output.nbytes + row
    return CoreDecoder(config, model, size, cache_type=cache_type, maps=loader.maps, choices=choices)


def _add_block(model: Any, loader: _Loader, config: ModelConfig, layer: int) -> None:
    """One block of the core's model: norms, linears, window and rotation."""
    prefix = f"blk.{layer}."
    linears = [loader.linear(*place) for place in linear_places(config, layer)]
    heads = [loader.vector(f"{prefix}{name}.weight") if config.qk_norm else None for name in HEAD_NORMS]
    before, after, then, behind = (
        loader.vector(f"{prefix}{name}.weight") if name else None for name in config.family.norms.places
    )
    spec = config.specs[layer]
    rotation = -1 if spec.rope is None else spec.rope
    model.add_block(before, then, *heads, linears, spec.window, rotation, after, behind)


class _Loader:
    """Makes matrices. `bytes` counts them as they lie in memory; `maps` holds the mapped files."""

    def __init__(self, read: WeightReader, pool: Any) -> None:
        self.pool = pool
        self.bytes = 0
        self._read = read
        self._files: dict[Path, int] = {}
        self.maps: dict[Path, Any] = {}
        self.matrices: dict[tuple[str, str], list[Any]] = {}  # by kind and layout; see `choose_readings`

    def vector(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._read(name).vector(), np.float32)

    def linear(self, name: str, biased: bool, rows: tuple[int, int] | None) -> Any:
        """A linear. rows: (first, count) of the tensor's rows; None for all"""
        bias = self.vector(f"{name}.bias") if biased else None
        if bias is not None and rows is not None:
            bias = np.ascontiguousarray(bias[rows[0] : sum(rows)])
        return _core().Linear(self.factor(f"{name}.weight", rows), bias)

    def factor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A matrix that products are taken with."""
        made = self.matrix(name, rows)
        kind = reading.PACKED if made.packed else reading.FLOATS
        self.matrices.setdefault((kind, self._read(name).info.layout), []).append(made)
        return made

    def matrix(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """The tensor, or some of its rows, as the core's Matrix."""
        weight = self._read(name) if rows is None else self._read(name).part(*rows)
        made = self._stored(weight) if weight.info.layout in PACKED + FLOATS and weight.extent else self._made(weight)
        self.bytes += made.nbytes
        return made

    def _stored(self, weight: Weight) -> Any:
        info, extent = weight.info, weight.extent
        assert extent is not None
        descriptor = self._open(extent.path)
        if info.layout in FLOATS:
            if os.fstat(descriptor).st_size < extent.offset + info.nbytes:
                raise FileError(f"{extent.path}: {info.name}: the file is shorter than when it was opened.")
            data = self._map(extent.path)[extent.offset : extent.offset + info.nbytes]
            return _core().view_matrix(info.layout, info.rows, info.cols, data)
        matrix = _core().Matrix(info.layout, info.rows, info.cols)
        try:
            matrix.read(descriptor, extent.offset, self.pool)
        except RuntimeError as error:
            raise FileError(f"{extent.path}: {info.name}: {error} Something else may be writing to it.") from None
        return matrix

    def _made(self, weight: Weight) -> Any:
        """From codes where the core has blocks for their format, else decoded."""
        from bitsmith.runtime.core_grids import grid_layout, grid_rows  # and with it all formats

        rows, cols = weight.info.rows, weight.info.cols
        codes = weight.codes(0, 0)
        layout = None if codes is None else grid_layout(codes.format, cols)
        matrix = _core().Matrix(layout or "f32", rows, cols)
        step = max(32, _SLAB_WEIGHTS // max(cols, 1) // 32 * 32)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            if layout is None:
                data = np.ascontiguousarray(weight.rows(start, stop), np.float32)
            else:
                slab = weight.codes(start, stop)
                assert slab is not None
                data = grid_rows(slab, layout)
            matrix.fill(start, stop - start, data.reshape(-1).view(np.uint8), self.pool)
        return matrix

    def _open(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def _map(self, path: Path) -> np.ndarray:
        """The bytes of the whole file: only then can the system use large pages."""
        if path not in self.maps:
            descriptor = self._open(path)
            try:
                self.maps[path] = _core().Mapping(descriptor, os.fstat(descriptor).st_size)
            except RuntimeError as error:
                raise FileError(f"{path}: {error}; check its file system, or copy it to a local disk.") from None
        data: np.ndarray = self.maps[path].data
        return data

    def close(self) -> None:
        """Mapped pages stay without the files' descriptors."""
        for descriptor in self._files.values():
            os.close(descriptor)


def _core() -> Any:
    module = core()
    assert module is not None
    return module

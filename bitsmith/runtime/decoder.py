"""The decoder-only transformer that every known architecture configures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from bitsmith.models.arch.block import Part, parts_of
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.rope import long_frequencies, rope_frequencies, rope_magnitude
from bitsmith.runtime.cache import Cache, Cells
from bitsmith.runtime.kernel import Ops, Tensor
from bitsmith.runtime.layer_inputs import LayerInputs
from bitsmith.runtime.step import Step, checked_step, refuse_without_cache, run_in_chunks
from bitsmith.runtime.tokens import checked_tokens
from bitsmith.runtime.weights import Block, Weights


@dataclass(frozen=True)
class Visible:
    """The keys that the queries of a step see.

    keys: (first, stop), the range of keys that at least one query sees
    mask: boolean [rows or 1, n, stop - first]; None if every query sees all of them
    """

    keys: tuple[int, int]
    mask: Tensor | None


@dataclass(frozen=True)
class Routing:
    """What a calibration wants of the experts in a pass.

    every: whether the linears of every expert see all tokens; the output is still what the router chose
    chosen: called with the layer and the experts that its router chose, int64 [tokens, used]
    """

    every: bool = False
    chosen: Callable[[int, Tensor], None] = lambda layer, chosen: None


@dataclass(frozen=True)
class Pass:
    """Values that all layers of one forward pass share.

    rotations: cos and sin of the new positions, for each of `ModelConfig.ropes`
    full, sliding: visible keys for full and for sliding layers
    cells: places of the new keys and values; None without a cache
    temperature: multiplier of the queries of each position, [rows or 1, 1, n, 1]; None for none
    kept: without a cache, keys and values of the layers whose cache others use, added as they are computed
    inputs: the embeddings of layers; None if the model has none
    routing: None outside of calibrations
    """

    rotations: tuple[tuple[Tensor, Tensor], ...]
    full: Visible
    sliding: Visible
    cells: Cells | None = None
    temperature: Tensor | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    inputs: LayerInputs | None = None
    routing: Routing | None = None

    def watched(self, routing: Routing | None) -> Pass:
        """The same pass, which tells `routing` what routers choose. Keys and values are still kept in this one."""
        return self if routing is None else replace(self, routing=routing)


@dataclass(frozen=True)
class Run:
    """One forward pass as operations see it; see `bitsmith.models.arch.operations.base.Run`."""

    config: ModelConfig
    ops: Ops
    shared: Pass
    cache: Cache | None = None

    @property
    def every_expert(self) -> bool:
        """Whether the linears of every expert see all tokens."""
        return self.shared.routing is not None and self.shared.routing.every

    def routed(self, layer: int, chosen: Tensor) -> None:
        """Told of the experts that a router chose: int64 [tokens, used]."""
        if self.shared.routing is not None:
            self.shared.routing.chosen(layer, chosen)

    def rotated(self, layer: int, x: Tensor) -> Tensor:
        """Queries or keys [batch, heads, n, head_dim], rotated as the layer rotates."""
        rope = self.config.specs[layer].rope
        if rope is None:
            return x
        return self.ops.rotate(x, self.shared.rotations[rope], self.config.ropes[rope].interleaved)

    def tempered(self, q: Tensor) -> Tensor:
        """Queries [batch, heads, n, head_dim] times the factors of their positions."""
        return q if self.shared.temperature is None else q * self.shared.temperature

    def visible(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values that some query sees, and the mask. New ones go to the cache, if there is one."""
        seen = self.shared.sliding if self.config.specs[layer].window else self.shared.full
        if self.cache is not None and self.shared.cells is not None:
            self.cache.store(layer, self.shared.cells, keys, values)
            keys, values = self.cache.read(layer, self.shared.cells, *seen.keys)
        elif layer in self.config.kept_layers:
            self.shared.kept[layer] = keys, values
        return keys, values, seen.mask

    def visible_of(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same for a layer that uses the keys and values of an earlier one."""
        spec = self.config.specs[layer]
        seen = self.shared.sliding if spec.window else self.shared.full
        assert spec.keys_of is not None
        if self.cache is not None and self.shared.cells is not None:
            return *self.cache.read(spec.keys_of, self.shared.cells, *seen.keys), seen.mask
        return *self.shared.kept[spec.keys_of], seen.mask

    def window(self, layer: int) -> int | None:
        """Earlier positions that a layer's queries see, 0 for all; None with a cache, whose rows begin anywhere."""
        if self.cache is not None:
            return None
        return self.config.window if self.config.specs[layer].window else 0

    def layer_input(self, layer: int) -> Tensor:
        """The layer's embedding of each token, [batch, n, layer_width]."""
        assert self.shared.inputs is not None
        return self.shared.inputs.of(layer)

    def recurrent(self, layer: int) -> tuple[Tensor, ...] | None:
        """What the layer kept of the tokens before, for each row; None without a cache."""
        if self.cache is None or self.shared.cells is None:
            return None
        return self.cache.state(layer, self.shared.cells)

    def keep(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """Keep the state of a layer, if there is a cache."""
        if self.cache is not None and self.shared.cells is not None:
            self.cache.keep(layer, self.shared.cells, state)

    @property
    def counts(self) -> Tensor | None:
        """Number of real tokens of each row; None if all are real."""
        return None if self.shared.cells is None else self.shared.cells.counts


class Decoder:
    """A configuration, its weights and the operations they run on. It has no state: sequences live in a `Cache`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self._ropes = [(rope_frequencies(rope), rope_magnitude(rope)) for rope in config.ropes]
        self._long = [
            long_frequencies(rope) if rope.scaling == "longrope" else found
            for rope, (found, _) in zip(config.ropes, self._ropes, strict=True)
        ]

    def new_cache(self, capacity: int, *, batch: int = 1) -> Cache:
        """An empty cache of `batch` slots; see `Cache`."""
        return Cache(self.config, self.ops, capacity, batch=batch)

    def forward(
        self,
        tokens: np.ndarray,
        cache: Cache | None = None,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        first: int = 0,
    ) -> Tensor:
        """Logits of the next token, float32 [rows, n - first, vocab].

        tokens: integers [rows, n]. Each row continues its slot of the cache, and is added to it.
        slots: integers [rows], the slots of the rows; None: all slots in order
        counts: integers [rows], number of real tokens of each row; the rest is filler, and its logits have no meaning.
            None: all
        first: leave out the logits of the tokens before this one; negative counts from the end (-1: the last only)
        Raises UsageError for tokens, slots or counts out of range, or positions beyond the cache.
        """
        return self.logits(self.hidden(tokens, cache, slots=slots, counts=counts)[:, first:])

    def hidden(
        self,
        tokens: np.ndarray,
        cache: Cache | None = None,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        single: int | None = None,
    ) -> Tensor:
        """The hidden states after the last layer, before the final norm: float32 [rows, n, hidden]; see `forward`.

        single: for the C++ core, see `runtime.base.AnyDecoder`; here all rows are computed in one way
        """
        if cache is not None:
            return self._step(checked_step(tokens, self.config.vocab, cache, slots, counts), cache)
        refuse_without_cache(slots, counts)
        ids = checked_tokens(tokens, self.config.vocab)
        return self._blocks(ids, self._place(np.arange(ids.shape[1])[None], ids.shape[1]), None)

    def normed(self, hidden: Tensor) -> Tensor:
        """The final norm: float32 [..., hidden] -> the same."""
        normed: Tensor = self.ops.rms_norm(hidden, self.weights.output_norm, self.config.norm_eps)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: float32 [..., hidden] -> [..., vocab]."""
        config = self.config
        found = self.weights.output(self.normed(hidden))
        if config.logit_divisor != 1.0:
            found = found / config.logit_divisor
        return self.ops.softcapped(found, config.logit_softcap) if config.logit_softcap else found

    def prefill(
        self,
        tokens: np.ndarray,
        cache: Cache,
        *,
        slots: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        chunk: int = 512,
    ) -> Tensor:
        """Feed tokens as `forward` does, but in chunks, so that attention never needs more than [chunk, length]
        scores a head.

        Returns the logits of each row's last real token, float32 [rows, vocab].
        """
        step = checked_step(tokens, self.config.vocab, cache, slots, counts)
        return self.logits(run_in_chunks(step, chunk, lambda part: self._step(part, cache), self.ops.array))

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices in memory that one generated token reads."""
        experts = self.config.experts
        return self.weights.token_bytes(1.0 if experts is None else experts.used / experts.count)

    @property
    def choices(self) -> None:
        """Nothing is chosen here."""
        return

    def numpy(self, x: Tensor) -> np.ndarray:
        """A tensor of these operations as numpy."""
        return self.ops.numpy(x)

    def place(self, n: int, ids: np.ndarray | None = None, *, like: Pass | None = None) -> Pass:
        """Rotation and masks of n tokens a row that begin their sequences, without a cache.

        ids: int64 [rows, n], the tokens; only models with embeddings of layers need them
        like: an earlier pass of n tokens a row, whose rotation and masks are taken
        """
        shared = self._place(np.arange(n)[None], n) if like is None else replace(like, kept={})
        return shared if ids is None else replace(shared, inputs=self._inputs(ids, None))

    def _inputs(self, ids: np.ndarray, first: Tensor | None) -> LayerInputs | None:
        weights = self.weights.layers
        if weights is None:
            return None
        return LayerInputs(weights, ids, self.embedded(ids) if first is None else first, self.config.norm_eps)

    def _place(self, positions: np.ndarray, stop: int, cells: Cells | None = None) -> Pass:
        """Masks for queries at `positions`, int64 [rows or 1, n], and keys before `stop`."""
        config, ops = self.config, self.ops
        rotations = tuple(
            ops.rotation(positions, long if stop > rope.original_context else short, magnitude)
            for rope, (short, magnitude), long in zip(config.ropes, self._ropes, self._long, strict=True)
        )
        full = self._visible(positions, stop, 0)
        sliding = self._visible(positions, stop, config.window) if config.window else full
        temperature = None
        if config.temperature:
            turns = np.floor(positions / config.temperature_length)
            factors = 1.0 + config.temperature * np.log1p(turns)
            temperature = ops.array(factors.astype(np.float32)[:, None, :, None])
        return Pass(rotations, full, sliding, cells, temperature)

    def _step(self, step: Step, cache: Cache) -> Tensor:
        """Hidden states of a step, float32 [rows, n, hidden]. Its tokens are added to the cache."""
        positions = step.positions()
        if (positions == positions[0]).all():  # one mask for all
            positions = positions[:1]
        shared = self._place(positions, int(positions[:, -1].max()) + 1, cache.cells(step))
        try:
            x = self._blocks(step.tokens, shared, cache)
        except BaseException:  # stopped between layers, whose states would belong to different tokens
            cache.give_up(step)
            raise
        cache.lengths[step.slots] = step.stops
        return x

    def _blocks(self, ids: np.ndarray, shared: Pass, cache: Cache | None) -> Tensor:
        x = self.embedded(ids)
        shared = replace(shared, inputs=self._inputs(ids, x))
        for layer, block in enumerate(self.weights.blocks):
            x = self.run_block(layer, block, x, shared, cache)
        return x

    def embedded(self, ids: np.ndarray) -> Tensor:
        """The input of the first block: int64 [rows, n] -> float32 [rows, n, hidden]."""
        x = self.weights.embedding.gather(self.ops.array(ids))
        return x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale

    def run_block(self, layer: int, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None) -> Tensor:
        """One layer: float32 [batch, n, hidden] -> the same.

        shared: from `place`; without a cache
        """
        for part in parts_of(self.config, layer):
            x = self.run_part(layer, part, block, x, shared, cache)
        return x

    def run_part(
        self, layer: int, part: Part, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None
    ) -> Tensor:
        """One operation of a block, with its norms and its residual connection; see `run_block`."""
        return self.added(part, block, x, self.operate(layer, part, block, x, shared, cache))

    def added(self, part: Part, block: Block, x: Tensor, added: Tensor) -> Tensor:
        """The output of an operation joined with its input `x`: the norm after it, and the residual connection."""
        if part.after:
            added = self.ops.rms_norm(added, block.norms[part.after], self.config.norm_eps)
        x = x + (added if self.config.residual_scale == 1.0 else added * self.config.residual_scale)
        return x * block.norms[part.scale] if part.scale else x

    def operate(
        self, layer: int, part: Part, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None
    ) -> Tensor:
        """The output of an operation, before the norm after it and the residual connection."""
        run = Run(self.config, self.ops, shared, cache)
        normed = self.ops.rms_norm(x, block.norms[part.before], self.config.norm_eps) if part.before else x
        return part.operation.forward(run, layer, block, normed)

    def _visible(self, positions: np.ndarray, stop: int, window: int) -> Visible:
        """The keys that queries at `positions`, int64 [rows or 1, n], see: i - window < j <= i for query i, key j."""
        low = max(0, int(positions[:, 0].min()) + 1 - window) if window else 0
        queries, keys = positions[:, :, None], np.arange(low, stop)
        visible = keys <= queries
        if window:
            visible &= keys > queries - window
        return Visible((low, stop), None if visible.all() else self.ops.array(visible))

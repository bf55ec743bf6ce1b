"""The decoder-only transformer that every known architecture configures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.rope import rope_frequencies, rope_magnitude
from bitsmith.runtime.cache import Cache, Cells
from bitsmith.runtime.kernel import Ops, Tensor
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
class Pass:
    """Values that all layers of one forward pass share.

    rotation: cos and sin of the new positions
    full, sliding: visible keys for full and for sliding layers
    cells: places of the new keys and values; None without a cache
    """

    rotation: tuple[Tensor, Tensor]
    full: Visible
    sliding: Visible
    cells: Cells | None = None


class Decoder:
    """A configuration, its weights and the operations they run on. It has no state: sequences live in a `Cache`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self._frequencies = rope_frequencies(config.rope)
        self._magnitude = rope_magnitude(config.rope)
        layers = config.window_layers or tuple(range(config.layers))
        self._slides = frozenset(layers if config.window else ())

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
    ) -> Tensor:
        """The hidden states after the last layer, before the final norm: float32 [rows, n, hidden]; see `forward`."""
        if cache is not None:
            return self._step(checked_step(tokens, self.config.vocab, cache, slots, counts), cache)
        refuse_without_cache(slots, counts)
        ids = checked_tokens(tokens, self.config.vocab)
        return self._blocks(ids, self.place(ids.shape[1]), None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: float32 [..., hidden] -> [..., vocab]."""
        normed = self.ops.rms_norm(hidden, self.weights.output_norm, self.config.norm_eps)
        return self.weights.output(normed)

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
        return self.weights.token_bytes

    @property
    def choices(self) -> None:
        """Nothing is chosen here."""
        return

    def numpy(self, x: Tensor) -> np.ndarray:
        """A tensor of these operations as numpy."""
        return self.ops.numpy(x)

    def place(self, n: int) -> Pass:
        """Rotation and masks of n tokens a row that begin their sequences, without a cache."""
        return self._place(np.arange(n)[None], n)

    def _place(self, positions: np.ndarray, stop: int, cells: Cells | None = None) -> Pass:
        """Masks for queries at `positions`, int64 [rows or 1, n], and keys before `stop`."""
        rotation = self.ops.rotation(positions, self._frequencies, self._magnitude)
        full = self._visible(positions, stop, 0)
        return Pass(rotation, full, self._visible(positions, stop, self.config.window) if self._slides else full, cells)

    def _step(self, step: Step, cache: Cache) -> Tensor:
        """Hidden states of a step, float32 [rows, n, hidden]. Its tokens are added to the cache."""
        positions = step.positions()
        if (positions == positions[0]).all():  # one mask for all
            positions = positions[:1]
        shared = self._place(positions, int(positions[:, -1].max()) + 1, cache.cells(step))
        x = self._blocks(step.tokens, shared, cache)
        cache.lengths[step.slots] = step.stops
        return x

    def _blocks(self, ids: np.ndarray, shared: Pass, cache: Cache | None) -> Tensor:
        x = self.weights.embedding.gather(self.ops.array(ids))
        for layer, block in enumerate(self.weights.blocks):
            x = self.run_block(layer, block, x, shared, cache)
        return x

    def run_block(self, layer: int, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None) -> Tensor:
        """One layer: float32 [batch, n, hidden] -> the same.

        shared: from `place`; without a cache

        The four methods it consists of give the inputs of the block's linears, named as `LinearGroup` names them.
        """
        x = x + block.linears["attn_output"](self.o_proj_input(layer, block, self.attn_in(block, x), shared, cache))
        return x + block.linears["ffn_down"](self.down_proj_input(block, self.ffn_in(block, x)))

    def attn_in(self, block: Block, x: Tensor) -> Tensor:
        """Input of q, k and v: float32 [batch, n, hidden] -> the same."""
        return self.ops.rms_norm(x, block.norms["attn_norm"], self.config.norm_eps)

    def ffn_in(self, block: Block, x: Tensor) -> Tensor:
        """Input of gate and up, from the hidden states after attention: [batch, n, hidden] -> the same."""
        return self.ops.rms_norm(x, block.norms["ffn_norm"], self.config.norm_eps)

    def down_proj_input(self, block: Block, x: Tensor) -> Tensor:
        """Input of down, from `ffn_in`: [batch, n, hidden] -> [batch, n, intermediate]."""
        return self.ops.swiglu(block.linears["ffn_gate"](x), block.linears["ffn_up"](x))

    def o_proj_input(self, layer: int, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None) -> Tensor:
        """Input of the output projection, from `attn_in`: [batch, n, hidden] -> [batch, n, heads * head_dim]."""
        config, ops = self.config, self.ops
        batch, n = x.shape[0], x.shape[1]
        q = block.linears["attn_q"](x).reshape(batch, n, config.heads, config.head_dim)
        k = block.linears["attn_k"](x).reshape(batch, n, config.kv_heads, config.head_dim)
        v = block.linears["attn_v"](x).reshape(batch, n, config.kv_heads, config.head_dim).swapaxes(1, 2)
        if config.qk_norm:
            q = ops.rms_norm(q, block.norms["attn_q_norm"], config.norm_eps)
            k = ops.rms_norm(k, block.norms["attn_k_norm"], config.norm_eps)
        q = ops.rotate(q.swapaxes(1, 2), shared.rotation, config.rope.interleaved)
        k = ops.rotate(k.swapaxes(1, 2), shared.rotation, config.rope.interleaved)
        visible = shared.sliding if layer in self._slides else shared.full
        if cache is not None and shared.cells is not None:
            cache.store(layer, shared.cells, k, v)
            k, v = cache.read(layer, shared.cells, *visible.keys)
        return ops.attention(q, k, v, visible.mask)

    def _visible(self, positions: np.ndarray, stop: int, window: int) -> Visible:
        """The keys that queries at `positions`, int64 [rows or 1, n], see: i - window < j <= i for query i, key j."""
        low = max(0, int(positions[:, 0].min()) + 1 - window) if window else 0
        queries, keys = positions[:, :, None], np.arange(low, stop)
        visible = keys <= queries
        if window:
            visible &= keys > queries - window
        return Visible((low, stop), None if visible.all() else self.ops.array(visible))

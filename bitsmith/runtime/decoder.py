"""The decoder-only transformer that every known architecture configures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.rope import rope_frequencies, rope_magnitude
from bitsmith.runtime.cache import Cache
from bitsmith.runtime.kernel import Ops, Tensor
from bitsmith.runtime.tokens import checked_tokens
from bitsmith.runtime.weights import Block, Weights


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share.

    rotation: cos and sin of the new positions
    start: index of the first new position; it attends to those before it too
    padding: int64 [batch]
    masks: visible keys for full and for sliding layers, each (first visible key, boolean [batch or 1, n, keys]
        or None where all are visible)
    """

    rotation: tuple[Tensor, Tensor]
    start: int
    full: tuple[int, Tensor | None]
    sliding: tuple[int, Tensor | None]


class Decoder:
    """config, weights and the operations they run on. Stateless: sequences live in a `Cache`."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self._frequencies = rope_frequencies(config.rope)
        self._magnitude = rope_magnitude(config.rope)
        layers = config.window_layers or tuple(range(config.layers))
        self._slides = frozenset(layers if config.window else ())

    def new_cache(self, capacity: int, *, batch: int = 1, padding: np.ndarray | None = None) -> Cache:
        """An empty cache; see `Cache`."""
        return Cache(self.config, self.ops, capacity, batch=batch, padding=padding)

    def forward(
        self, tokens: np.ndarray, cache: Cache | None = None, *, padding: np.ndarray | None = None, first: int = 0
    ) -> Tensor:
        """Logits of the next token, float32 [batch, n - first, vocab].

        tokens: integers [batch, n]; they follow what the cache holds, and are added to it
        padding: int64 [batch], tokens of padding on the left of each sequence; only without a cache, which has its
            own. Logits of padding mean nothing.
        first: leave out the logits of the tokens before this one; negative counts from the end (-1: the last only)
        Raises UsageError for tokens out of range or positions beyond the cache.
        """
        hidden = self.hidden(tokens, cache, padding=padding)
        return self.logits(hidden[:, first:])

    def hidden(self, tokens: np.ndarray, cache: Cache | None = None, *, padding: np.ndarray | None = None) -> Tensor:
        """The hidden states after the last layer, before the final norm: float32 [batch, n, hidden]."""
        ids = checked_tokens(tokens, self.config.vocab)
        if cache is not None and (cache.batch != ids.shape[0] or padding is not None):
            raise UsageError(f"a cache for {cache.batch} sequences with its own padding got a batch of {ids.shape[0]}.")
        padding = cache.padding if cache is not None else padding
        shared = self.place(ids.shape, cache.length if cache is not None else 0, padding)
        x = self.weights.embedding.gather(self.ops.array(ids))
        for layer, block in enumerate(self.weights.blocks):
            x = self.run_block(layer, block, x, shared, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection: float32 [..., hidden] -> [..., vocab]."""
        normed = self.ops.rms_norm(hidden, self.weights.output_norm, self.config.norm_eps)
        return self.weights.output(normed)

    def prefill(self, tokens: np.ndarray, cache: Cache, *, chunk: int = 512) -> Tensor:
        """Feed a prompt in chunks, so that attention never needs more than [chunk, length] scores a head.

        Returns the logits of the last position, float32 [batch, vocab]. tokens: integers [batch, n >= 1].
        """
        for start in range(0, max(tokens.shape[1], 1), chunk):
            hidden = self.hidden(tokens[:, start : start + chunk], cache)
        return self.logits(hidden[:, -1])

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices, as they lie in memory, that one generated token reads."""
        return self.weights.token_bytes

    def numpy(self, x: Tensor) -> np.ndarray:
        """A tensor of these operations as numpy."""
        return self.ops.numpy(x)

    def place(self, shape: tuple[int, ...], start: int, padding: np.ndarray | None = None) -> Pass:
        """Rotation and masks for tokens of `shape` [batch, n] whose first position is `start`."""
        batch, n = shape
        skipped = np.zeros(batch, np.int64) if padding is None else np.asarray(padding, np.int64)
        positions = np.maximum(np.arange(start, start + n) - skipped[:, None], 0)
        rotation = self.ops.rotation(positions, self._frequencies, self._magnitude)
        full = self._visible(start, n, skipped, 0)
        sliding = self._visible(start, n, skipped, self.config.window) if self._slides else full
        return Pass(rotation, start, full, sliding)

    def run_block(self, layer: int, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None) -> Tensor:
        """One layer: float32 [batch, n, hidden] -> the same. Without a cache `shared.start` must be 0.

        The four methods it consists of give the inputs of the block's linears, named as `LinearGroup` names them.
        """
        x = x + block.output(self.o_proj_input(layer, block, self.attn_in(block, x), shared, cache))
        return x + block.down(self.down_proj_input(block, self.ffn_in(block, x)))

    def attn_in(self, block: Block, x: Tensor) -> Tensor:
        """What q, k and v are given: float32 [batch, n, hidden] -> the same."""
        return self.ops.rms_norm(x, block.attn_norm, self.config.norm_eps)

    def ffn_in(self, block: Block, x: Tensor) -> Tensor:
        """What gate and up are given, of the hidden states after attention: [batch, n, hidden] -> the same."""
        return self.ops.rms_norm(x, block.ffn_norm, self.config.norm_eps)

    def down_proj_input(self, block: Block, x: Tensor) -> Tensor:
        """What down is given, of `ffn_in`: [batch, n, hidden] -> [batch, n, intermediate]."""
        return self.ops.swiglu(block.gate(x), block.up(x))

    def o_proj_input(self, layer: int, block: Block, x: Tensor, shared: Pass, cache: Cache | None = None) -> Tensor:
        """What the output projection is given, of `attn_in`: [batch, n, hidden] -> [batch, n, heads * head_dim]."""
        config, ops = self.config, self.ops
        batch, n = x.shape[0], x.shape[1]
        q = block.q(x).reshape(batch, n, config.heads, config.head_dim)
        k = block.k(x).reshape(batch, n, config.kv_heads, config.head_dim)
        v = block.v(x).reshape(batch, n, config.kv_heads, config.head_dim).swapaxes(1, 2)
        if block.q_norm is not None:
            q = ops.rms_norm(q, block.q_norm, config.norm_eps)
            k = ops.rms_norm(k, block.k_norm, config.norm_eps)
        q = ops.rotate(q.swapaxes(1, 2), shared.rotation, config.rope.interleaved)
        k = ops.rotate(k.swapaxes(1, 2), shared.rotation, config.rope.interleaved)
        low, visible = shared.sliding if layer in self._slides else shared.full
        if cache is not None:
            cache.store(layer, k, v)
            k = cache.keys[layer][:, :, low : shared.start + n]
            v = cache.values[layer][:, :, low : shared.start + n]
        else:
            k, v = k[:, :, low:], v[:, :, low:]
        return ops.attention(q, k, v, visible)

    def _visible(self, start: int, n: int, padding: np.ndarray, window: int) -> tuple[int, Tensor | None]:
        """First key that any of n queries at start.. sees, and the mask from there on.

        Key j is visible to query i where i - window < j <= i and j is no padding; a query that is padding itself
        sees itself only, to stay finite.
        """
        low = max(0, start + 1 - window) if window else 0
        queries = np.arange(start, start + n)[:, None]
        keys = np.arange(low, start + n)[None, :]
        visible = keys <= queries
        if window:
            visible &= keys > queries - window
        if padding.any():
            visible = (visible[None] & (keys >= padding[:, None, None])) | (keys == queries)
        else:
            visible = visible[None]
        return low, None if visible.all() else self.ops.array(visible)

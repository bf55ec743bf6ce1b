"""What blocks read of a window beside its hidden states: its tokens, and keys and values of earlier layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bitsmith.calibration.hidden import HiddenStates
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.decoder import Decoder, Pass
from bitsmith.work.state import State, Streamed


def kept_numbers(config: ModelConfig) -> int:
    """Numbers a token that are kept for later layers."""
    specs = (config.specs[layer] for layer in config.kept_layers)
    return sum(2 * spec.kv_heads * spec.head_dim for spec in specs)


class Beside:
    """The tokens of all windows, int64 [windows, context], and the keys and values that later layers use.

    They lie in memory or on disk as `hidden` does.
    """

    def __init__(self, config: ModelConfig, tokens: np.ndarray, hidden: HiddenStates) -> None:
        """Reserve the space."""
        self._specs, self._tokens = config.specs, tokens
        self._placed: tuple[Decoder, Pass] | None = None  # rotation and masks are those of every batch
        windows, context, _ = hidden.shape
        self._kept: dict[int, tuple[HiddenStates, HiddenStates]] = {}
        for layer in sorted(config.kept_layers):
            width = config.specs[layer].kv_heads * config.specs[layer].head_dim
            room = 0 if hidden.on_disk else 4 * windows * context * width
            keys, values = (HiddenStates(windows, context, width, memory=room) for _ in range(2))
            self._kept[layer] = keys, values

    def place(self, decoder: Decoder, layer: int, windows: np.ndarray) -> Pass:
        """The pass of some windows, by number, through a layer."""
        n = self._tokens.shape[1]
        if self._placed is None or self._placed[0] is not decoder:
            self._placed = decoder, decoder.place(n)
        shared = decoder.place(n, self._tokens[windows], like=self._placed[1])
        source = self._specs[layer].keys_of
        if source is not None:
            keys, values = (self._heads(source, each[windows]) for each in self._kept[source])
            device = decoder.weights.output_norm.device
            shared.kept[source] = keys.to(device), values.to(device)
        return shared

    def keep(self, layer: int, at: slice, shared: Pass) -> None:
        """Keep the keys and values that a pass of the windows `at` computed in a layer, if later layers use them."""
        if layer in self._kept and layer in shared.kept:
            for kept, new in zip(self._kept[layer], shared.kept[layer], strict=True):
                kept.write(at, new.transpose(1, 2).reshape(new.shape[0], new.shape[2], -1))

    def kept(self, name: str) -> dict[str, Streamed]:
        """The keys and values of all layers, for a state file. name: what their names begin with"""
        found: dict[str, Streamed] = {}
        for layer, (keys, values) in self._kept.items():
            found |= {f"{name}.{layer}.keys": keys.streamed(), f"{name}.{layer}.values": values.streamed()}
        return found

    def take(self, state: State, name: str) -> None:
        """Take over the keys and values of a state file."""
        for layer, (keys, values) in self._kept.items():
            keys.take(state, f"{name}.{layer}.keys")
            values.take(state, f"{name}.{layer}.values")

    def _heads(self, layer: int, values: Tensor) -> Tensor:
        """[windows, n, kv_heads * head_dim] -> [windows, kv_heads, n, head_dim]."""
        spec = self._specs[layer]
        return values.reshape(values.shape[0], -1, spec.kv_heads, spec.head_dim).transpose(1, 2)


class WindowStates(HiddenStates):
    """The hidden states of windows, with what blocks read beside them. A copy shares the latter."""

    def __init__(self, config: ModelConfig, tokens: np.ndarray, *, memory: int | None = None) -> None:
        """Reserve the space for windows of tokens, int64 [windows, context]."""
        windows, context = tokens.shape
        super().__init__(windows, context, config.hidden, memory=memory, further=kept_numbers(config))
        self.beside = Beside(config, tokens, self)

    def kept(self, name: str) -> dict[str, Streamed]:
        """Everything, for a state file. name: what the names of its arrays begin with"""
        return {name: self.streamed(), **self.beside.kept(name)}

    def restore(self, state: State, name: str) -> None:
        """Take over what `kept` gave. Raises DamagedError for another shape."""
        self.take(state, name)
        self.beside.take(state, name)

    def place(self, decoder: Decoder, layer: int, at: slice) -> Pass:
        """The pass of the windows `at` through a layer."""
        return self.beside.place(decoder, layer, np.arange(len(self))[at])


def place_windows(decoder: Decoder, layer: int, states: Any, windows: np.ndarray) -> Pass:
    """The pass of some windows, by number, through a layer. states: a `WindowStates`, or an array of hidden states"""
    if isinstance(states, WindowStates):
        return states.beside.place(decoder, layer, windows)
    return decoder.place(states.shape[1])

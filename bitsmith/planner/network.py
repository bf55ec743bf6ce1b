"""Network: what a plan knows of a model: its tensors' shapes, and what each layer keeps of earlier tokens."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from bitsmith.quant.tensor import TensorInfo

_LOOKED_UP = ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight")  # of which a row is read
_EXPERT = re.compile(r"_exps\.|\.experts\.")


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of the tokens before.

    keys, values: numbers a token; of latent attention the latent vector and its rotary part, as keys
    window: tokens that are kept; 0: all of them
    state: numbers kept whatever the context, of recurrent layers
    kind: "full", "window", "latent", "recurrent", or "shared" where an earlier layer's keys and values are used
    """

    keys: int = 0
    values: int = 0
    window: int = 0
    state: int = 0

    @property
    def kind(self) -> str:
        """See above."""
        if self.state:
            return "recurrent"
        if not self.keys:
            return "shared"
        if not self.values:
            return "latent"
        return "window" if self.window else "full"


@dataclass(frozen=True)
class Network:
    """A model's shape.

    name: for the report
    arch: GGUF's general.architecture where it has one, else config.json's model_type; what mixes look at
    context: tokens it was made for; 0 where it does not say
    heads, kv_heads, head_dim: of the attention; latent attention has as many key heads as heads
    intermediate: width of the widest MLP a token passes, all of its experts together
    experts, experts_used: of a routed MLP, and how many a token passes; 0 where dense
    rotary: tensors that a GGUF file holds beside them
    counted: weights, where the tensors hold codes that do not tell; 0: what the tensors hold
    caches: one a layer
    tensors: with GGUF's names where they are known; layouts and bytes as they are stored, where they are stored
    """

    name: str
    arch: str
    hidden: int
    vocab: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    caches: tuple[LayerCache, ...]
    tensors: tuple[TensorInfo, ...]
    experts: int = 0
    experts_used: int = 0
    counted: int = 0
    rotary: tuple[TensorInfo, ...] = ()

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.caches)

    @cached_property
    def parameters(self) -> int:
        """All weights."""
        return self.counted or sum(tensor.parameters for tensor in self.tensors)

    @cached_property
    def tied(self) -> bool:
        """Whether the output projection is the token embedding."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    def used(self, tensor: TensorInfo) -> float:
        """The share of a tensor's weights that one generated token reads.

        Of experts those that are chosen; of the embedding a row, unless it is the output projection too.
        """
        if self.experts and _EXPERT.search(tensor.name):
            return self.experts_used / self.experts
        if tensor.name.startswith("vision."):
            return 0.0
        if tensor.name in _LOOKED_UP and not (self.tied and tensor.name == "token_embd.weight"):
            return 1 / max(tensor.rows, 1)
        return 1.0

    @cached_property
    def active(self) -> int:
        """Weights that one token reads, the embedding's rows counted in full, as makers publish it."""
        whole = sum(tensor.parameters for tensor in self.tensors) or 1
        read = sum(t.parameters * (self.used(t) if _EXPERT.search(t.name) else 1) for t in self.tensors)
        return round(self.parameters / whole * read)

    @cached_property
    def attention(self) -> str:
        """The attention in a few words."""
        kinds = Counter(cache.kind for cache in self.caches)
        shared = "" if self.kv_heads in (0, self.heads) else f", {self.heads} heads share {self.kv_heads}"
        if kinds["latent"]:
            return f"latent attention, {max(cache.keys for cache in self.caches)} numbers a token and layer"
        words = []
        if kinds["window"]:
            window = max(cache.window for cache in self.caches)
            where = "every layer" if kinds["window"] == self.layers else f"{kinds['window']} of {self.layers} layers"
            words.append(f"a window of {window} tokens in {where}")
        if kinds["recurrent"]:
            words.append(f"{kinds['recurrent']} of {self.layers} layers recurrent")
        if kinds["shared"]:
            words.append(f"{kinds['shared']} layers keep nothing of their own")
        name = "multi-head" if self.kv_heads == self.heads else "multi-query" if self.kv_heads == 1 else "grouped"
        return ", ".join([f"{name} attention{shared}", *words])

"""Network: a model's tensors with their shapes, and what each layer keeps of earlier tokens."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from bitsmith.quant.tensor import TensorInfo

_LOOKED_UP = ("token_embd.weight", "position_embd.weight", "per_layer_token_embd.weight")  # one row a token is read
_EXPERT = re.compile(r"_exps\.|\.experts\.")


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of earlier tokens.

    keys, values: numbers a token; for latent attention, keys are the latent vector and its rotary part
    window: number of tokens kept; 0 for all
    state: numbers that a recurrent layer keeps; they do not grow with the context
    kind: "full", "window", "latent", "recurrent", or "shared" if the layer uses an earlier layer's keys and values
    """

    keys: int = 0
    values: int = 0
    window: int = 0
    state: int = 0

    @property
    def kind(self) -> str:
        """The kind of cache; see the class."""
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

    name: name in the report
    arch: GGUF's general.architecture if there is one, else config.json's model_type; mixes depend on it
    context: largest context of the model, in tokens; 0 if unknown
    heads, kv_heads, head_dim: of the attention; latent attention has as many key heads as heads
    intermediate: width of the widest MLP that a token passes; the experts that it passes are added up
    experts, experts_used: number of experts of a routed MLP, and number that one token passes; 0 if dense
    rotary: further tensors that a GGUF file holds
    counted: number of weights, if the tensors hold codes of unknown packing; else 0
    caches: one for each layer
    tensors: with GGUF's names if known; layouts and bytes are those in the file, if there is one
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
        """Number of all weights."""
        return self.counted or sum(tensor.parameters for tensor in self.tensors)

    @cached_property
    def tied(self) -> bool:
        """Whether the output projection is the token embedding."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    def used(self, tensor: TensorInfo) -> float:
        """Share of a tensor's weights that one generated token reads, 0 to 1.

        A token reads only the chosen experts. It reads one row of the embedding, unless that is the output projection
        too.
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
        """Number of weights that one token reads. All of the embedding counts, as in published figures."""
        whole = sum(tensor.parameters for tensor in self.tensors) or 1
        read = sum(t.parameters * (self.used(t) if _EXPERT.search(t.name) else 1) for t in self.tensors)
        return round(self.parameters / whole * read)

    @cached_property
    def attention(self) -> str:
        """The attention in a few words, for the report."""
        kinds = Counter(cache.kind for cache in self.caches)
        shared = "" if self.kv_heads in (0, self.heads) else f", {self.heads} heads share {self.kv_heads} key heads"
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
            words.append(f"{kinds['shared']} layers use another layer's cache")
        name = "multi-head" if self.kv_heads == self.heads else "multi-query" if self.kv_heads == 1 else "grouped"
        return ", ".join([f"{name} attention{shared}", *words])

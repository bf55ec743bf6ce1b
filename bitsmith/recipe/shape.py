"""ModelShape: the numbers of a model that a mix depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitsmith.errors import FileError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.spec import ARCHITECTURES
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import layer_of

# number of layers with which llama.cpp calls a model of this architecture a 70B
_70B_LAYERS = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True)
class ModelShape:
    """What llama-quantize's mixes use of a model, beside the names and shapes of its tensors.

    arch: GGUF's general.architecture ("llama", "qwen2", ...); "" if unknown
    layers: number of blocks, `<arch>.block_count`
    heads, kv_heads: number of attention heads of the first block; 0 without attention
    experts: number of experts of a routed MLP; 0 if dense

    The list of tensors says whether the output projection is tied to the embedding.
    """

    arch: str
    layers: int
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0

    @property
    def queries_per_key(self) -> int:
        """Number of query heads that share a key head; 0 without attention."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp's loader calls this shape "70B" (src/models/*.cpp, build 11434)."""
        if self.layers != _70B_LAYERS.get(self.arch):
            return False
        return self.arch != "llama" or (self.heads != self.kv_heads and self.experts != 8)

    @classmethod
    def from_config(cls, config: ModelConfig) -> ModelShape:
        """The shape of a decoder."""
        experts = config.experts.count if config.experts is not None else 0
        return cls(ARCHITECTURES[config.arch].gguf, config.layers, config.heads, config.kv_heads, experts)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Iterable[TensorInfo] = ()) -> ModelShape:
        """The shape from GGUF keys, given as plain values.

        Without block_count, layers are counted in the names of `tensors`. Other missing counts are 0; missing kv_heads
        equals heads. Raises FileError for a count that is not a whole number.
        """
        arch = str(metadata.get("general.architecture", ""))

        def number(key: str, default: int) -> int:
            value = metadata.get(f"{arch}.{key}", default)
            if isinstance(value, list | tuple | np.ndarray):  # one for each layer: llama-quantize uses the first
                value = value[0] if len(value) else default
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise FileError(f"GGUF key {arch}.{key}: expected a whole number, found {value!r:.60}.")
            return int(value)

        layers = number("block_count", -1)
        if layers < 0:
            layers = 1 + max((layer_of(t.name) for t in tensors), default=-1)
        heads = number("attention.head_count", 0)
        return cls(arch, layers, heads, number("attention.head_count_kv", heads), number("expert_count", 0))

"""ModelConfig: the numbers that a decoder needs, from config.json or from GGUF keys."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from typing import Literal

MAX_LAYERS = 4096  # no model has more; a file that says so is damaged
_QKV = ("attn_q", "attn_k", "attn_v")
_OUTPUT = ("attn_output",)
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
LINEARS = (*_QKV, *_OUTPUT, *_MLP)  # of a block, in the order of computation, without "blk.N." and ".weight"


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021).

    theta: base of the frequencies
    dim: number of rotated dimensions of a head
    interleaved: True if pairs are (0, 1), (2, 3), ... (GGUF's llama layout), False if they are (i, i + dim / 2)
        (Hugging Face). It depends on the file that holds the weights, not on the architecture.
    scaling: "none", "linear", "yarn" (Peng et al. 2023) or "llama3" (Llama 3.1, by wavelength)
    factor: new context divided by original_context; 1.0 for "none"
    original_context: tokens of the pre-training context, for yarn and llama3
    low_freq_factor, high_freq_factor: parameters of llama3
    beta_fast, beta_slow: parameters of yarn
    attention_factor: multiplier of cos and sin; None for 0.1 ln(factor) + 1 with yarn, else for 1
    freq_factors: divisors of each frequency, [dim / 2]: GGUF's rope_freqs.weight; empty if there are none
    """

    theta: float = 10000.0
    dim: int = 0
    interleaved: bool = False
    scaling: Literal["none", "linear", "yarn", "llama3"] = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    freq_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer. Tensor names are GGUF's, see `bitsmith.models.arch.names`.

    arch: key of `bitsmith.models.arch.ARCHITECTURES` ("llama", "mistral", "qwen2", "qwen3")
    context: number of positions that the model was trained for (max_position_embeddings)
    window: sliding attention window in tokens; 0 for full attention
    window_layers: layers with a window; if it is empty and window > 0, all layers
    tied: True if the output projection is the token embedding
    qkv_bias, output_bias, mlp_bias: True if these linears have a bias
    biases: the linears that have a bias ("blk.0.attn_q"), if only some of a kind do; None if the three flags say it
    qk_norm: True if there is an RMSNorm over each head of q and k (Qwen3)
    """

    arch: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm_eps: float
    rope: Rope = field(default_factory=Rope)
    window: int = 0
    window_layers: tuple[int, ...] = ()
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    biases: frozenset[str] | None = None
    qk_norm: bool = False
    activation: str = "silu"

    def has_bias(self, linear: str, layer: int) -> bool:
        """Whether a linear of a block has a bias; linear: GGUF's name without "blk.N." ("attn_q")."""
        if self.biases is not None:
            return f"blk.{layer}.{linear}" in self.biases
        if linear.startswith("ffn"):
            return self.mlp_bias
        return self.output_bias if linear == "attn_output" else self.qkv_bias

    def with_biases(self, found: Set[str]) -> ModelConfig:
        """The configuration of a model whose linears `found` have a bias ("blk.0.attn_q"); the others have none."""
        everywhere = [
            {f"blk.{layer}.{name}" for layer in range(self.layers) for name in kind} for kind in (_QKV, _OUTPUT, _MLP)
        ]
        qkv, output, mlp = (bool(kind & found) for kind in everywhere)
        whole = all(kind <= found or not kind & found for kind in everywhere)
        biases = None if whole else frozenset(found)
        return replace(self, qkv_bias=qkv, output_bias=output, mlp_bias=mlp, biases=biases)

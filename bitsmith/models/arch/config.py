"""ModelConfig: the numbers a decoder needs, the same whether they came from config.json or from GGUF keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MAX_LAYERS = 4096  # no model has more; a file that claims them is damaged


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021).

    theta: base of the frequencies
    dim: rotated dimensions of a head
    interleaved: True: pairs are (0, 1), (2, 3), ... (GGUF's llama layout); False: (i, i + dim / 2) (Hugging Face).
        It depends on the file the weights come from, not on the architecture.
    scaling: "none", "linear", "yarn" (Peng et al. 2023) or "llama3" (Llama 3.1, by wavelength)
    factor: how much longer than original_context; 1.0 for "none"
    original_context: tokens of the pre-training context; yarn and llama3
    low_freq_factor, high_freq_factor: llama3
    beta_fast, beta_slow: yarn
    attention_factor: multiplier of cos and sin; None: 0.1 ln(factor) + 1 for yarn, else 1
    freq_factors: divisors of each frequency, [dim / 2]; GGUF's rope_freqs.weight; empty where not given
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
    context: positions the model was trained for (max_position_embeddings)
    window: sliding attention window in tokens; 0 where attention is full
    window_layers: layers whose attention slides; empty with window > 0 means all
    tied: the output projection is the token embedding
    qkv_bias, output_bias, mlp_bias: which linears carry a bias
    qk_norm: RMSNorm over each head of q and k (Qwen3)
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
    qk_norm: bool = False
    activation: str = "silu"

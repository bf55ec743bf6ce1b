"""Model families as data, as far as a plan needs them: which matrices a layer has, and which of them carry a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """What config.json of a family leaves unsaid.

    gguf: GGUF's general.architecture
    norms: of a layer: two, four around attention and MLP, or one where the two run side by side
    norm_bias: norms have a bias (LayerNorm)
    gated: the MLP has a gate beside its up projection
    fused_qkv, fused_gate: stored as one matrix
    qkv_bias, output_bias, mlp_bias: whether they have one; None: what attention_bias or mlp_bias says
    qk_norm: norms of q and k: of each head, or of the whole width
    tied: the default of tie_word_embeddings
    window: which layers slide where config.json gives a window and no layer_types
    positions: rows of a learned position embedding beyond the context; None: no such embedding
    embedding_norm: a norm behind the embedding
    sinks: a learned number a head that takes attention
    expert_bias, score_bias: experts and their router have biases; a bias is added to the scores that choose experts
    widening: width of the MLP in hidden sizes, where config.json does not say
    context: the default
    defaults: of further fields, transformers'
    """

    gguf: str
    norms: Literal[1, 2, 4] = 2
    norm_bias: bool = False
    gated: bool = True
    fused_qkv: bool = False
    fused_gate: bool = False
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: Literal["", "head", "whole"] = ""
    tied: bool = False
    window: Literal["never", "all", "alternating", "pattern", "by_field"] = "never"
    positions: int | None = None
    embedding_norm: bool = False
    sinks: bool = False
    expert_bias: bool = False
    score_bias: bool = False
    widening: int = 4
    context: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)


_LAYER_NORM = Family(
    "", norm_bias=True, gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, tied=True
)  # decoders of before 2023
_GEMMA3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
_GEMMA3 |= {"max_position_embeddings": 131072}

FAMILIES: Mapping[str, Family] = {  # by config.json's model_type
    "llama": Family("llama"),
    "mistral": Family("llama", window="all"),
    "mixtral": Family("llama", window="all"),
    "qwen2": Family("qwen2", qkv_bias=True, output_bias=False, window="by_field"),
    "qwen2_moe": Family("qwen2moe", qkv_bias=True, output_bias=False, window="by_field"),
    "qwen3": Family("qwen3", qk_norm="head", window="by_field"),
    "qwen3_moe": Family("qwen3moe", qk_norm="head", window="by_field"),
    "gemma": Family("gemma", tied=True),
    "gemma2": Family("gemma2", norms=4, tied=True, window="alternating"),
    "gemma3_text": Family("gemma3", norms=4, qk_norm="head", tied=True, window="pattern", defaults=_GEMMA3),
    "phi3": Family("phi3", fused_qkv=True, fused_gate=True, window="all"),
    "olmo2": Family("olmo2", qk_norm="whole"),
    "cohere": Family("command-r", norms=1, tied=True),
    "falcon": Family("falcon", norms=1, norm_bias=True, gated=False, fused_qkv=True, tied=True, context=2048),
    "gpt2": replace(_LAYER_NORM, gguf="gpt2", fused_qkv=True, positions=0),
    "opt": replace(_LAYER_NORM, gguf="opt", positions=2),
    "bloom": replace(_LAYER_NORM, gguf="bloom", fused_qkv=True, embedding_norm=True, context=2048),
    "deepseek_v2": Family("deepseek2"),
    "deepseek_v3": Family("deepseek2", score_bias=True),
    "kimi_k2": Family("deepseek2", score_bias=True),
    "gpt_oss": Family("gpt-oss", qkv_bias=True, output_bias=True, window="alternating", sinks=True, expert_bias=True),
    "glm4_moe": Family("glm4moe", output_bias=False, score_bias=True),
}

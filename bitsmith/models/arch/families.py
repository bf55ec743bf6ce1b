"""Model families as data: one table. A new family is one row.

Plans know every family. Families with a `Decoder` can be converted, calibrated and run as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bitsmith.models.arch.config import LINEARS


@dataclass(frozen=True)
class Decoder:
    """What converting and running a family needs beside the rest of its row.

    hf_classes: class names in config.json's "architectures"
    permuted: True if GGUF orders the rows of q and k so that rotary pairs are neighbours (interleaved rope)
    gguf_biases: linears for which llama.cpp's loader of this family reads a bias
    context, kv_heads, head_dim, window: transformers' defaults for fields that are missing in config.json. None if the
        default is computed (kv_heads = heads, head_dim = hidden / heads) or if there is none (window)
    """

    hf_classes: tuple[str, ...]
    permuted: bool = False
    gguf_biases: tuple[str, ...] = LINEARS[:3]
    context: int = 2048
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None


@dataclass(frozen=True)
class Family:
    """What the config.json of a family does not say.

    gguf: GGUF's general.architecture
    norms: number of norms in a layer: 2; 4 if attention and MLP have one before and after; 1 if both run in parallel
    norm_bias: True if norms have a bias (LayerNorm)
    gated: True if the MLP has a gate beside its up projection
    fused_qkv, fused_gate: True if these matrices are stored as one
    qkv_bias, output_bias, mlp_bias: whether these linears have a bias; None if attention_bias or mlp_bias decides
    qk_norm: norms of q and k, over each head or over the whole width
    tied: default of tie_word_embeddings
    window: which layers have a window, if config.json gives a window and no layer_types
    positions: rows of a learned position embedding beyond the context; None if there is no such embedding
    embedding_norm: True if there is a norm after the embedding
    sinks: True if each head has a learned attention sink
    expert_bias: True if experts and their router have biases
    score_bias: True if a bias is added to the scores that choose experts
    widening: width of the MLP divided by the hidden size, if config.json does not say
    context: default context, in tokens
    defaults: transformers' defaults of further fields
    decoder: None if bitsmith cannot convert and run the family
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
    decoder: Decoder | None = None


_LAYER_NORM = Family(
    "", norm_bias=True, gated=False, qkv_bias=True, output_bias=True, mlp_bias=True, tied=True
)  # decoders from before 2023
_GEMMA3 = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
_GEMMA3 |= {"max_position_embeddings": 131072}

_LLAMA = Decoder(("LlamaForCausalLM", "LLaMAForCausalLM"), permuted=True, gguf_biases=LINEARS)
_MISTRAL = Decoder(("MistralForCausalLM",), permuted=True, gguf_biases=LINEARS, context=131072, kv_heads=8, window=4096)
_QWEN2 = Decoder(("Qwen2ForCausalLM",), context=32768, kv_heads=32, window=4096)
_QWEN3 = Decoder(("Qwen3ForCausalLM",), context=32768, kv_heads=32, head_dim=128, window=4096)

FAMILIES: Mapping[str, Family] = {  # by config.json's model_type
    "llama": Family("llama", decoder=_LLAMA),
    "mistral": Family("llama", window="all", decoder=_MISTRAL),
    "mixtral": Family("llama", window="all"),
    "qwen2": Family("qwen2", qkv_bias=True, output_bias=False, window="by_field", decoder=_QWEN2),
    "qwen2_moe": Family("qwen2moe", qkv_bias=True, output_bias=False, window="by_field"),
    "qwen3": Family("qwen3", qk_norm="head", window="by_field", decoder=_QWEN3),
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

"""Which networks the C++ core computes (csrc/run/model.cpp), and where its seven matrices of a block lie."""

from __future__ import annotations

from typing import Any

from bitsmith.models.arch.config import LINEARS, ModelConfig

CORE_ARCHITECTURES = (  # without experts; plans count on them
    *("llama", "mistral3", "qwen2", "qwen3", "qwen3vl", "gemma3", "phi3", "olmo2", "smollm3", "granite"),
    *("seed_oss", "hunyuan-dense", "ernie4_5", "exaone4", "glm4"),
)


def core_lacks(config: ModelConfig) -> str | None:
    """What of a configuration the core does not know, in words; None if it computes the model."""
    lacking = (
        (config.activation not in ("silu", "gelu_tanh"), f"the activation {config.activation}"),
        (config.experts is not None, "mixtures of experts"),
        (config.family.sinks, "attention sinks"),
        (bool(config.attention_softcap), "softcaps of attention"),
        (config.rope.scaling == "longrope", "LongRoPE"),
    )
    return next((words for lacks, words in lacking if lacks), None)


def linear_places(config: ModelConfig, layer: int) -> list[tuple[str, bool, tuple[int, int] | None]]:
    """Where each of `LINEARS` lies in a file: tensor, whether it has a bias, and its rows in a fused one, else None."""
    q, kv, inner = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate
    fused: dict[str, tuple[str, tuple[int, int]]] = {}
    if config.family.fused_qkv:
        rows = {"attn_q": (0, q), "attn_k": (q, kv), "attn_v": (q + kv, kv)}
        fused |= {name: ("attn_qkv", part) for name, part in rows.items()}
    if config.family.fused_gate:
        fused |= {"ffn_gate": ("ffn_up", (0, inner)), "ffn_up": ("ffn_up", (inner, inner))}
    found = []
    for name in LINEARS:
        own, part = fused.get(name, (name, None))
        found.append((f"blk.{layer}.{own}", config.has_bias(own, layer), part))
    return found


def variation(config: ModelConfig) -> dict[str, Any]:
    """What `Model.set_variation` is given (csrc/run/model.h)."""
    usual = float(config.head_dim) ** -0.5
    return {
        "embedding_scale": config.embedding_scale,
        "residual_scale": config.residual_scale,
        "query_scale": config.attention_scale / usual if config.attention_scale else 1.0,
        "temperature": config.temperature,
        "temperature_length": max(config.temperature_length, 1),
        "gelu": config.activation == "gelu_tanh",
        "whole_norms": config.family.qk_norm == "whole",
        "late_norms": config.decoder.norm_after_rotation,
    }

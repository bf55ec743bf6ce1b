"""Which networks the C++ core computes (csrc/run/model.cpp), and where its seven matrices of a block lie."""

from __future__ import annotations

from bitsmith.models.arch.config import LINEARS, ModelConfig

CORE_ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "qwen3vl",
    "seed_oss",
    "ernie4_5",
    "phi3",
)  # without experts; plans count on them


def core_lacks(config: ModelConfig) -> str | None:
    """What of a configuration the core does not know, in words; None if it computes the model."""
    family, decoder = config.family, config.decoder
    norms = family.norms
    usual = norms.before_attention and norms.before_mlp and not (norms.after_attention or norms.after_mlp)
    lacking = (
        (config.activation != "silu", f"the activation {config.activation}"),
        (config.experts is not None, "mixtures of experts"),
        (not usual, "norms behind operations"),
        (family.qk_norm == "whole", "norms over all heads"),
        (config.qk_norm and decoder.norm_after_rotation, "norms after the rotation"),
        (family.sinks, "attention sinks"),
        (bool(config.attention_softcap), "softcaps of attention"),
        (bool(config.attention_scale), "another attention scale"),
        (config.rope.scaling == "longrope", "LongRoPE"),
        (bool(config.temperature), "a temperature of queries"),
        (config.local_rope is not None or bool(config.unrotated), "rotations that differ by layer"),
        ((config.embedding_scale, config.residual_scale) != (1.0, 1.0), "multipliers of states"),
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

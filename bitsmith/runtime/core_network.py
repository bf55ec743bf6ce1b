"""Which networks the C++ core computes (csrc/run/model.cpp): what a configuration has that it does not know."""

from __future__ import annotations

from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.families import BEFORE


def core_lacks(config: ModelConfig) -> str | None:
    """What of a configuration the core does not know, in words; None if it computes the model."""
    family, decoder = config.family, config.decoder
    plain = (config.embedding_scale, config.residual_scale, config.logit_divisor) == (1.0, 1.0, 1.0)
    lacking = (
        (config.activation != "silu", f"the activation {config.activation}"),
        (config.experts is not None, "mixtures of experts"),
        (family.norms.names != BEFORE.names, "norms behind operations"),
        (family.fused_qkv or family.fused_gate, "fused matrices"),
        (family.qk_norm == "whole", "norms over all heads"),
        (config.qk_norm and decoder.norm_after_rotation, "norms after the rotation"),
        (family.sinks, "attention sinks"),
        (bool(config.attention_softcap or config.logit_softcap), "softcaps"),
        (bool(config.attention_scale), "another attention scale"),
        (bool(config.temperature), "a temperature of queries"),
        (config.local_rope is not None or bool(config.unrotated), "rotations that differ by layer"),
        (not plain, "multipliers of states and logits"),
    )
    return next((words for lacks, words in lacking if lacks), None)

"""Writes a ModelConfig as config.json. hf_config.py reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.delta_config import delta_to_hf
from bitsmith.models.arch.hf_config import USUAL_ACTIVATION
from bitsmith.models.arch.hf_layers import layer_fields
from bitsmith.models.arch.rope import llama3_freq_factors
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The contents of a config.json for transformers 4 and 5, with rope_theta and rope_scaling.

    A "llama" with a window and a "ministral3" without a temperature become a MistralForCausalLM. Raises
    UnsupportedError if transformers has no class for the shape (other biases, frequency factors of no llama3 scaling).
    """
    mistral = config.window if config.arch == "llama" else config.arch == "ministral3" and not config.temperature
    spec = ARCHITECTURES["mistral" if mistral else config.arch]
    if spec.decoder.wrapped:
        raise UnsupportedError(
            f"transformers has {spec.name} only inside of models for images ({spec.decoder.hf_classes[0]}), whose "
            "other parts this file does not hold; write GGUF."
        )
    activation = "hidden_activation" if "hidden_activation" in spec.decoder.fields else "hidden_act"
    values: dict[str, Any] = {
        "architectures": [spec.decoder.hf_classes[0]],
        "model_type": spec.name,
        activation: USUAL_ACTIVATION[config.activation],
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.context,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": None if spec.decoder.layer_facts else _rope_scaling(config),
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab,
        **_window_fields(config, spec),
        **_bias_fields(config, spec),
        **_rotation_fields(config, spec),
        **_number_fields(config, spec),
        **_expert_fields(config, spec),
        **layer_fields(config),
        **delta_to_hf(config),
    }
    if "rope_parameters" in values:  # by kind of layer
        for name in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"):
            values.pop(name, None)
    return values


def _rotation_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    row, values = spec.decoder, dict[str, Any]()
    if config.rope.scaling == "longrope":
        values["original_max_position_embeddings"] = config.rope.original_context
    if row.local_rope == "theta":
        values["rope_local_base_freq"] = (config.local_rope or config.rope).theta
    if "partial_rotary_factor" in row.rope_fields:
        values["partial_rotary_factor"] = config.rope.dim / config.head_dim
    if row.rotates == "no_rope_layers":
        values["no_rope_layers"] = [int(layer not in config.unrotated) for layer in range(config.layers)]
    return values


def _number_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    """Multipliers and caps; a cap that is off is null."""
    values: dict[str, Any] = {}
    for name, (attribute, _) in spec.decoder.numbers.items():
        values[name] = getattr(config, attribute) or None
    if spec.decoder.query_scalar:
        scalar = round(config.attention_scale**-2, 4)
        values["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
    return values


def _expert_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    row, experts = spec.decoder.experts, config.experts
    if row is None or experts is None:
        return {}
    values: dict[str, Any] = {row.count[0]: experts.count, row.used: experts.used, row.width: experts.width}
    if row.shared:
        values[row.shared] = experts.shared
    if row.normalize is None:
        values["norm_topk_prob"] = experts.normalize
    if experts.layers is not None:
        values["mlp_only_layers"] = [layer for layer in range(config.layers) if layer not in experts.layers]
    return values


def _window_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    rule = spec.family.window
    if rule == "never":
        return {}
    if rule == "all":
        return {"sliding_window": config.window or None}
    if not config.window:
        return {"use_sliding_window": False} if rule in ("by_field", "by_flag") else {"sliding_window": None}
    sliding = config.window_layers or tuple(range(config.layers))
    if rule == "by_flag" and len(sliding) < config.layers:
        raise UnsupportedError(
            f"only the layers {list(sliding)} have a window, and transformers has no such {config.arch} model; write "
            "GGUF."
        )
    if rule == "by_flag":
        return {"use_sliding_window": True, "sliding_window": config.window}
    kinds = ["sliding_attention" if layer in sliding else "full_attention" for layer in range(config.layers)]
    own = {"use_sliding_window": True} if rule == "by_field" else {}
    return {**own, "sliding_window": config.window, "layer_types": kinds}


def _bias_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    has = (config.qkv_bias, config.output_bias, config.mlp_bias)
    if config.biases is not None:
        raise UnsupportedError(
            f"only some linears of the model have a bias, and transformers has no class for such a {config.arch} "
            "model; write GGUF."
        )
    kind, row = spec.decoder.optional_biases, spec.decoder
    if kind == "use_bias" and len(set(has)) == 1:
        return {"use_bias": config.qkv_bias}
    output = {row.output_bias: config.output_bias} if row.output_bias not in ("", "attention_bias") else {}
    fits = bool(output) or config.output_bias == (config.qkv_bias if row.output_bias else False)
    if kind == "all" and fits:
        return {"attention_bias": config.qkv_bias, **output, "mlp_bias": config.mlp_bias}
    if kind == "attention" and fits and not config.mlp_bias:
        return {"attention_bias": config.qkv_bias}
    if has == (spec.always_qkv_bias, False, False):
        return {}
    raise UnsupportedError(
        f"transformers has no class for a {config.arch} model with biases (qkv, output, mlp) = {has}; write GGUF."
    )


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    rope = config.rope
    if rope.scaling == "longrope":
        return {
            "rope_type": "longrope",
            "type": "longrope",
            "short_factor": list(rope.freq_factors),
            "long_factor": list(rope.long_factors),
            "factor": config.context / rope.original_context,
            "attention_factor": rope.attention_factor,
            "original_max_position_embeddings": rope.original_context,
        }
    if rope.freq_factors:
        rope = llama3_from_factors(rope)
    if rope.attention_factor is not None and rope.scaling != "yarn":
        raise UnsupportedError(
            f"the model multiplies cos and sin by {rope.attention_factor} without yarn; config.json has no field for "
            "this; write GGUF."
        )
    if rope.scaling == "none":
        return None
    values: dict[str, Any] = {"rope_type": rope.scaling, "type": rope.scaling, "factor": rope.factor}
    if rope.scaling in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rope.original_context
    if rope.scaling == "llama3":
        values |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if config.temperature:
            values["llama_4_scaling_beta"] = config.temperature
        if not rope.truncate:
            values["truncate"] = False
        if rope.attention_factor is not None:
            values["attention_factor"] = rope.attention_factor
    return values


def llama3_from_factors(rope: Rope) -> Rope:
    """The llama3 scaling with the factors `rope.freq_factors`. GGUF stores the factors, transformers the parameters.

    It tries the published settings (low 1, high 4) with original contexts of powers of two. Raises UnsupportedError if
    none gives these factors.
    """
    given = np.asarray(rope.freq_factors, np.float64)
    for power in range(10, 21):
        candidate = replace(
            rope,
            scaling="llama3",
            factor=float(given.max()),
            original_context=2**power,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            freq_factors=(),
        )
        if rope.scaling == "none" and np.allclose(llama3_freq_factors(candidate), given, rtol=1e-4, atol=0):
            return candidate
    raise UnsupportedError(
        "rope_freqs.weight is not a llama3 scaling with the published settings, and config.json has no field for other "
        "factors; write GGUF."
    )

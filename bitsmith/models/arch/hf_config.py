"""Converts between config.json and ModelConfig, with transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import MAX_LAYERS, ModelConfig, Rope
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.hf_fields import check_fields
from bitsmith.models.arch.rope import llama3_freq_factors, yarn_magnitude
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec, spec_of_hf


def config_from_hf(config: Mapping[str, Any], *, origin: str = "config.json") -> ModelConfig:
    """The decoder's configuration from a parsed config.json.

    origin: name of the file, for errors
    Fields for which transformers has a default may be missing. Raises FileError for a missing field and for impossible
    or contradictory values, UnsupportedError for an unknown architecture, activation or rope scaling, and for a field
    that changes the computation and is not read.
    """
    fields = Fields(config, origin)
    spec = spec_of_hf(_classes(fields), config.get("model_type"), origin)
    layers = fields.integer("num_hidden_layers", maximum=MAX_LAYERS)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    context = fields.integer("max_position_embeddings", spec.decoder.context)
    kv_default = heads if "num_key_value_heads" in config else spec.decoder.kv_heads or heads
    kv_heads = fields.integer("num_key_value_heads", kv_default)
    head_dim = _head_dim(fields, spec, hidden, heads)
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(f"{origin}: hidden_act {activation!r} is not supported; expected silu.")
    window, window_layers = _window(fields, spec, layers)
    rope = _rope(fields, head_dim, context)
    check_fields(config, spec.name, origin)
    attention_bias = fields.flag("attention_bias", False) if spec.name in ("llama", "qwen3") else False
    return ModelConfig(
        arch=spec.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=fields.integer("vocab_size"),
        context=context,
        norm_eps=fields.epsilon("rms_norm_eps", 1e-6),
        rope=rope,
        window=window,
        window_layers=window_layers,
        tied=fields.flag("tie_word_embeddings", False),
        qkv_bias=attention_bias or spec.always_qkv_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False) if spec.name == "llama" else False,
        qk_norm=spec.qk_norm,
    )


def _classes(fields: Fields) -> tuple[str, ...]:
    classes = fields.values.get("architectures")
    if classes is None:
        return ()
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise fields.fail("architectures", "a list of class names", classes)
    return tuple(classes)


def _head_dim(fields: Fields, spec: ArchSpec, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") and spec.decoder.head_dim is None and hidden % heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size ({hidden})", heads)
    head_dim = fields.integer("head_dim", spec.decoder.head_dim or hidden // heads)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number, for rotary pairs", head_dim)
    return head_dim


def _window(fields: Fields, spec: ArchSpec, layers: int) -> tuple[int, tuple[int, ...]]:
    """The window in tokens (0 for none), and the layers with a window (empty for all)."""
    explicit_null = "sliding_window" in fields.values and not fields.has("sliding_window")
    if spec.windowed == "never" or explicit_null:
        return 0, ()
    if spec.windowed == "always":
        return fields.integer("sliding_window", spec.decoder.window), ()
    types = fields.values.get("layer_types")
    if not fields.flag("use_sliding_window", False):
        if isinstance(types, list) and "sliding_attention" in types:
            raise fields.fail("layer_types", "no sliding_attention, since use_sliding_window is false", types)
        return 0, ()
    window = fields.integer("sliding_window", spec.decoder.window)
    if types is None:
        first = fields.integer("max_window_layers", 28, minimum=0)
        sliding = tuple(range(min(first, layers), layers))
    else:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
            raise fields.fail("layer_types", f"{layers} entries, each one of {', '.join(known)}", types)
        sliding = tuple(layer for layer, kind in enumerate(types) if kind == "sliding_attention")
    return (window, sliding) if sliding else (0, ())


def _rope(fields: Fields, head_dim: int, context: int) -> Rope:
    """The rotary embedding, from rope_theta with rope_scaling or from transformers 5's rope_parameters."""
    values = fields.values.get("rope_scaling") or fields.values.get("rope_parameters") or {}
    if not isinstance(values, dict):
        raise fields.fail("rope_scaling", "an object or null", values)
    if any(isinstance(value, dict) for value in values.values()):
        raise UnsupportedError(f"{fields.origin}: rope_parameters that differ by layer type are not supported.")
    scaling = Fields(values, f"{fields.origin}: rope_parameters")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0))
    partial = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedError(f"{fields.origin}: partial_rotary_factor {partial} is not supported; expected 1.0.")
    if theta <= 1:
        raise scaling.fail("rope_theta", "a number greater than 1", theta)
    plain = Rope(theta=theta, dim=head_dim)
    if kind in ("default", "none"):
        return plain
    # transformers lets the field outside rope_scaling win
    original = fields.integer(
        "original_max_position_embeddings", scaling.integer("original_max_position_embeddings", context)
    )
    if kind == "linear":
        return replace(plain, scaling="linear", factor=scaling.number("factor"))
    if kind == "llama3":
        return _llama3(scaling, replace(plain, scaling="llama3", original_context=original))
    if kind == "yarn":
        factor = scaling.number("factor", context / original)
        return _yarn(scaling, replace(plain, scaling="yarn", original_context=original, factor=factor))
    raise UnsupportedError(
        f"{fields.origin}: rope scaling {kind!r} is not supported; known are default, linear, llama3 and yarn."
    )


def _llama3(scaling: Fields, rope: Rope) -> Rope:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.fail("high_freq_factor", f"more than low_freq_factor ({low})", high)
    return replace(rope, factor=scaling.number("factor"), low_freq_factor=low, high_freq_factor=high)


def _yarn(scaling: Fields, rope: Rope) -> Rope:
    if "truncate" in scaling.values and not scaling.given("truncate"):
        raise UnsupportedError(f"{scaling.origin}: yarn with truncate false is not supported.")
    attention_factor = scaling.number("attention_factor") if scaling.has("attention_factor") else None
    if attention_factor is None and scaling.given("mscale") and scaling.given("mscale_all_dim"):
        numerator = yarn_magnitude(rope.factor, scaling.number("mscale", positive=False))
        attention_factor = numerator / yarn_magnitude(rope.factor, scaling.number("mscale_all_dim", positive=False))
    return replace(
        rope,
        attention_factor=attention_factor,
        beta_fast=scaling.number("beta_fast") if scaling.given("beta_fast") else 32.0,
        beta_slow=scaling.number("beta_slow") if scaling.given("beta_slow") else 1.0,
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The contents of a config.json for transformers 4 and 5, with rope_theta and rope_scaling.

    A "llama" with a window becomes a MistralForCausalLM. Raises UnsupportedError if transformers has no class for the
    shape (other biases, frequency factors of no llama3 scaling).
    """
    spec = ARCHITECTURES["mistral" if config.arch == "llama" and config.window else config.arch]
    values: dict[str, Any] = {
        "architectures": [spec.decoder.hf_classes[0]],
        "model_type": spec.name,
        "hidden_act": config.activation,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.context,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocab,
        **_window_fields(config, spec),
        **_bias_fields(config, spec),
    }
    return values


def _window_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    if spec.windowed == "never":
        return {}
    if spec.windowed == "always":
        return {"sliding_window": config.window or None}
    if not config.window:
        return {"use_sliding_window": False}
    sliding = config.window_layers or tuple(range(config.layers))
    kinds = ["sliding_attention" if layer in sliding else "full_attention" for layer in range(config.layers)]
    return {"use_sliding_window": True, "sliding_window": config.window, "layer_types": kinds}


def _bias_fields(config: ModelConfig, spec: ArchSpec) -> dict[str, Any]:
    has = (config.qkv_bias, config.output_bias, config.mlp_bias)
    if config.biases is not None:
        raise UnsupportedError(
            f"only some linears of the model have a bias, and transformers has no class for such a {config.arch} "
            "model; write GGUF."
        )
    if spec.name == "llama" and config.qkv_bias == config.output_bias:
        return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if spec.name == "qwen3" and config.qkv_bias == config.output_bias and not config.mlp_bias:
        return {"attention_bias": config.qkv_bias}
    if has == (spec.always_qkv_bias, False, False):
        return {}
    raise UnsupportedError(
        f"transformers has no class for a {config.arch} model with biases (qkv, output, mlp) = {has}; write GGUF."
    )


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    rope = config.rope
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

"""Reads config.json into a ModelConfig, with transformers' defaults. hf_config_writer.py does the reverse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import MAX_EXPERTS, MAX_LAYERS, Experts, ModelConfig, Rope
from bitsmith.models.arch.delta_config import delta_from_hf
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.hf_fields import check_fields
from bitsmith.models.arch.hf_layers import DEFAULT_ROPES, layer_facts, proportional
from bitsmith.models.arch.rope import yarn_magnitude
from bitsmith.models.arch.spec import ArchSpec, spec_of_hf


def config_from_hf(config: Mapping[str, Any], *, origin: str = "config.json") -> ModelConfig:
    """The decoder's configuration from a parsed config.json.

    origin: name of the file, for errors
    Fields for which transformers has a default may be missing. Raises FileError for a missing field and for impossible
    or contradictory values, UnsupportedError for an unknown architecture, activation or rope scaling, and for a field
    that changes the computation and is not read.
    """
    classes = _classes(Fields(config, origin))
    config = text_part(config)
    fields = Fields(config, origin)
    spec = spec_of_hf(classes, config.get("model_type"), origin)
    layers = fields.integer("num_hidden_layers", maximum=MAX_LAYERS)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads", spec.family.defaults.get("num_attention_heads"))
    context = fields.integer("max_position_embeddings", spec.decoder.context)
    kv_default = heads if "num_key_value_heads" in config else spec.decoder.kv_heads or heads
    kv_heads = fields.integer("num_key_value_heads", kv_default)
    head_dim = _head_dim(fields, spec, hidden, heads)
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)
    _check_activation(fields, spec)
    window, window_layers = _window(fields, spec, layers)
    facts = layer_facts(fields, spec, layers, window_layers)
    _check_full(fields, facts, heads)
    rope, local_rope = _ropes(fields, spec, (facts.get("full_head_dim", head_dim), head_dim), context)
    check_fields(config, spec.name, origin)
    experts = _experts(fields, spec, layers)
    found = ModelConfig(
        arch=spec.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 0 if experts and experts.layers is None else None, minimum=0),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=fields.integer("vocab_size", spec.family.defaults.get("vocab_size")),
        context=context,
        norm_eps=fields.epsilon("rms_norm_eps", spec.decoder.eps),
        rope=rope,
        local_rope=local_rope if window else None,
        window=window,
        window_layers=window_layers,
        unrotated=_unrotated(fields, spec, layers, window, window_layers),
        tied=fields.flag("tie_word_embeddings", spec.family.tied),
        qk_norm=spec.qk_norm,
        activation=spec.decoder.activation,
        experts=experts,
        **facts,
        delta=delta_from_hf(fields, spec, layers),
        **_biases(fields, spec),
    )
    return replace(found, **_numbers(fields, spec, hidden))


def _check_full(fields: Fields, facts: Mapping[str, Any], heads: int) -> None:
    """Raise FileError if heads of layers without a window have impossible sizes."""
    if facts and facts["full_head_dim"] % 2:
        raise fields.fail("global_head_dim", "an even number, for rotary pairs", facts["full_head_dim"])
    if facts and facts["full_kv_heads"] and heads % facts["full_kv_heads"]:
        kv_heads = facts["full_kv_heads"]
        raise fields.fail("num_global_key_value_heads", f"a divisor of num_attention_heads ({heads})", kv_heads)


_TEXT_PARTS = ("text_config", "language_config", "llm_config")  # of models that take images or sound, too


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the text decoder, if the model has further parts; else the whole configuration."""
    for name in _TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, dict) and "num_hidden_layers" in part:
            above: dict[str, Any] = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
            vision = config.get("vision_config")
            deep = vision.get("deepstack_visual_indexes") if isinstance(vision, dict) else None
            above["_deepstack_layers"] = len(deep) if isinstance(deep, list) else 0
            return {**part, **above}  # the head belongs to the whole
    return config


_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh",), "clamped": ("silu",)}
USUAL_ACTIVATION = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "clamped": "silu"}


def _check_activation(fields: Fields, spec: ArchSpec) -> None:
    kind = spec.decoder.activation
    name = "hidden_activation" if "hidden_activation" in spec.decoder.fields else "hidden_act"
    found = fields.text(name, USUAL_ACTIVATION[kind])
    for field, usual in (("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)) if kind == "clamped" else ():
        if fields.number(field, usual) != usual:
            raise UnsupportedError(
                f"{fields.origin}: {field} = {fields.values[field]} is not supported; expected {usual}."
            )
    if found not in _ACTIVATIONS[kind]:
        raise UnsupportedError(
            f"{fields.origin}: {name} {found!r} is not supported; expected {USUAL_ACTIVATION[kind]}."
        )


def _biases(fields: Fields, spec: ArchSpec) -> dict[str, Any]:
    """The flags of `ModelConfig` about biases."""
    kind, fixed = spec.decoder.optional_biases, spec.always_qkv_bias
    if kind == "use_bias":
        every = fields.flag("use_bias", False)
        return {"qkv_bias": every, "output_bias": every, "mlp_bias": every}
    attention = fields.flag("attention_bias", spec.decoder.attention_bias) if kind else False
    name = spec.decoder.output_bias
    output = attention if name == "attention_bias" else fields.flag(name, False) if name else False
    if spec.family.output_bias is not None:
        output = spec.family.output_bias
    mlp = fields.flag("mlp_bias", False) if kind == "all" else False
    return {"qkv_bias": attention or fixed, "output_bias": output, "mlp_bias": mlp}


def _numbers(fields: Fields, spec: ArchSpec, hidden: int) -> dict[str, Any]:
    """Multipliers and caps, by attribute of `ModelConfig`."""
    row = spec.decoder
    found: dict[str, Any] = {}
    for name, (attribute, default) in row.numbers.items():
        absent = name in fields.values and not fields.has(name)  # null turns a cap off
        found[attribute] = 0.0 if absent else fields.number(name, default, positive=bool(default))
    found["attention_scale"] = found.get("attention_scale", row.score_scale)
    if row.query_scalar:
        found["attention_scale"] = fields.number("query_pre_attn_scalar", row.query_scalar) ** -0.5
    if row.embedding_root:
        found["embedding_scale"] = hidden**0.5
    if "mrope_section" in row.rope_fields:
        found["sections"] = _sections(fields, spec)
        found["deepstack"] = fields.integer("_deepstack_layers", 0, minimum=0)
    beta = _rope_values(fields, spec).get("llama_4_scaling_beta")
    if beta is not None and "llama_4_scaling_beta" in row.rope_fields:
        scaling = Fields(_rope_values(fields, spec), f"{fields.origin}: rope_parameters")
        found["temperature"] = scaling.number("llama_4_scaling_beta", positive=False)
        found["temperature_length"] = scaling.integer("original_max_position_embeddings")
    return found


def _sections(fields: Fields, spec: ArchSpec) -> tuple[int, ...]:
    sections = _rope_values(fields, spec).get("mrope_section") or list(spec.decoder.sections)
    if not isinstance(sections, list) or not all(isinstance(n, int) and 0 <= n < 1024 for n in sections):
        raise fields.fail("rope_scaling.mrope_section", "numbers of pairs", sections)
    return tuple([*sections, 0, 0, 0, 0][:4])


def _experts(fields: Fields, spec: ArchSpec, layers: int) -> Experts | None:
    row = spec.decoder.experts
    if row is None or (row.switch and not fields.flag(row.switch, False)):
        return None
    count = fields.integer(next((name for name in row.count if fields.has(name)), row.count[0]), maximum=MAX_EXPERTS)
    used = fields.integer(row.used, maximum=count)
    normalize = fields.flag("norm_topk_prob", row.normalize_default) if row.normalize is None else row.normalize
    routed: tuple[int, ...] | None = None
    if "mlp_only_layers" in spec.decoder.fields:
        dense = fields.values.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
            raise fields.fail("mlp_only_layers", "a list of layers", dense)
        step = fields.integer("decoder_sparse_step", 1)
        routed = tuple(n for n in range(layers) if n not in dense and (n + 1) % step == 0)
        routed = None if len(routed) == layers else routed
    shared = fields.integer(row.shared, 512, minimum=0) if row.shared else 0
    return Experts(count, used, fields.integer(row.width), normalize, routed, shared)


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
    computed = "head_dim" in fields.values and not fields.has("head_dim") and not hidden % heads
    head_dim = fields.integer("head_dim", (None if computed else spec.decoder.head_dim) or hidden // heads)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number, for rotary pairs", head_dim)
    return head_dim


def _window(fields: Fields, spec: ArchSpec, layers: int) -> tuple[int, tuple[int, ...]]:
    """The window in tokens (0 for none), and the layers with a window (empty for all)."""
    rule = spec.family.window
    explicit_null = "sliding_window" in fields.values and not fields.has("sliding_window")
    if rule == "never" or explicit_null or (spec.decoder.window is None and not fields.has("sliding_window")):
        return 0, ()
    types = fields.values.get("layer_types")
    if rule == "all" or (rule == "by_flag" and fields.flag("use_sliding_window", False)):
        return fields.integer("sliding_window", spec.decoder.window), ()
    if rule == "by_flag":
        return 0, ()
    if rule == "by_field" and not fields.flag("use_sliding_window", False):
        if isinstance(types, list) and "sliding_attention" in types:
            raise fields.fail("layer_types", "no sliding_attention, since use_sliding_window is false", types)
        return 0, ()
    window = fields.integer("sliding_window", spec.decoder.window)
    if types is not None:
        sliding = _sliding(fields, types, layers)
        if spec.decoder.layer_facts:  # transformers takes the last layer for a full one, whatever layer_types says
            sliding = tuple(layer for layer in sliding if layer < layers - 1)
    elif rule == "by_field":
        first = fields.integer("max_window_layers", 28, minimum=0)
        sliding = tuple(range(min(first, layers), layers))
    else:
        sliding = _pattern(fields, spec, layers)
    return (window, sliding) if sliding else (0, ())


def _sliding(fields: Fields, types: Any, layers: int) -> tuple[int, ...]:
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        raise fields.fail("layer_types", f"{layers} entries, each one of {', '.join(known)}", types)
    return tuple(layer for layer, kind in enumerate(types) if kind == "sliding_attention")


def _pattern(fields: Fields, spec: ArchSpec, layers: int) -> tuple[int, ...]:
    """Layers with a window by sliding_window_pattern: one layer of so many has none, or letters L and G in turn."""
    pattern = fields.values.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return tuple(layer for layer in range(layers) if pattern[layer % len(pattern)] == "L")
    every = fields.integer("sliding_window_pattern", spec.decoder.every)
    return tuple(layer for layer in range(layers) if (layer + 1) % every)


def _unrotated(
    fields: Fields, spec: ArchSpec, layers: int, window: int, window_layers: tuple[int, ...]
) -> tuple[int, ...]:
    """Layers without rotation."""
    if spec.decoder.rotates == "windowed":
        named = fields.has("sliding_window") or "sliding_window" not in fields.values
        return tuple(layer for layer in range(layers) if layer not in window_layers) if window or named else ()
    if spec.decoder.rotates == "all":
        return ()
    flags = fields.values.get("no_rope_layers")
    if flags is None:
        every = fields.integer("no_rope_layer_interval", 4)
        return tuple(layer for layer in range(layers) if not (layer + 1) % every)
    if not isinstance(flags, list) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        raise fields.fail("no_rope_layers", f"{layers} times 0 or 1", flags)
    return tuple(layer for layer in range(layers) if not flags[layer])


def _rope_values(fields: Fields, spec: ArchSpec) -> Mapping[str, Any]:
    own = (
        spec.decoder.rope if fields.values.get("model_type") in (None, spec.name) else None
    )  # not of Mistral Small 3.1
    values = fields.values.get("rope_scaling") or fields.values.get("rope_parameters") or own or {}
    if not isinstance(values, dict):
        raise fields.fail("rope_scaling", "an object or null", values)
    return values


def _ropes(fields: Fields, spec: ArchSpec, head_dims: tuple[int, int], context: int) -> tuple[Rope, Rope | None]:
    """The rotations of layers without and with a window, whose heads may differ; None if they are the same."""
    values, (full_dim, head_dim) = _rope_values(fields, spec), head_dims
    parts = fields.values.get("rope_parameters")
    if spec.decoder.layer_facts and not values:
        parts = DEFAULT_ROPES
    nested = isinstance(parts, dict) and any(isinstance(value, dict) for value in parts.values())
    how = spec.decoder.local_rope
    if nested and not how:
        raise UnsupportedError(f"{fields.origin}: rope_parameters that differ by layer type are not supported.")
    local_theta = fields.number("rope_local_base_freq", 10000.0) if how == "theta" else spec.decoder.theta
    theta = fields.number("rope_theta", spec.decoder.theta)
    if nested:
        assert isinstance(parts, dict)
        full = fields.values.get("rope_scaling") or parts.get("full_attention") or {}
        rope = _rope(fields, spec, full, full_dim, context, theta)
        local = _rope(fields, spec, parts.get("sliding_attention") or {}, head_dim, context, local_theta)
    else:
        rope = _rope(fields, spec, values, full_dim, context, theta)
        local = Rope(local_theta if how == "theta" else rope.theta, rope.dim, rope.interleaved) if how else rope
    return rope, None if local == rope else local


def _rope(
    fields: Fields, spec: ArchSpec, values: Mapping[str, Any], head_dim: int, context: int, default: float
) -> Rope:
    """A rotary embedding, from rope_theta with rope_scaling or from transformers 5's rope_parameters."""
    if not isinstance(values, dict):
        raise fields.fail("rope_parameters", "an object for each type of layer", values)
    scaling = Fields(values, f"{fields.origin}: rope_parameters")
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    theta = scaling.number("rope_theta", default)
    given = fields.number("partial_rotary_factor", spec.decoder.partial)
    partial = scaling.number("partial_rotary_factor", given)
    if partial > 1.0 or (partial != 1.0 and "partial_rotary_factor" not in spec.decoder.rope_fields):
        raise UnsupportedError(f"{fields.origin}: partial_rotary_factor {partial} is not supported; expected 1.0.")
    if theta <= 1:
        raise scaling.fail("rope_theta", "a number greater than 1", theta)
    if kind == "proportional" and spec.decoder.layer_facts:
        whole = Rope(theta=theta, dim=head_dim, interleaved=spec.decoder.interleaved)
        return proportional(whole, partial, scaling.number("factor", 1.0), scaling)
    plain = Rope(theta=theta, dim=int(head_dim * partial), interleaved=spec.decoder.interleaved)
    if kind in ("default", "none"):
        return plain
    if kind == "dynamic" and scaling.given("alpha") and "alpha" in spec.decoder.rope_fields:
        return replace(plain, theta=theta * scaling.number("alpha") ** (head_dim / (head_dim - 2)))
    if kind in ("longrope", "su") and "long_factor" in spec.decoder.rope_fields:
        return _longrope(fields, scaling, plain, context)
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
        yarn = replace(plain, scaling="yarn", original_context=original, factor=factor)
        return _yarn(scaling, yarn, "truncate" in spec.decoder.rope_fields)
    raise UnsupportedError(
        f"{fields.origin}: rope scaling {kind!r} is not supported; known are default, linear, llama3 and yarn."
    )


def _longrope(fields: Fields, scaling: Fields, rope: Rope, context: int) -> Rope:
    """Phi's scaling. The default original context is transformers' for Phi-3."""
    original = fields.integer(
        "original_max_position_embeddings", scaling.integer("original_max_position_embeddings", 4096), minimum=2
    )
    factor = scaling.number("factor", context / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return replace(
        rope,
        scaling="longrope",
        original_context=original,
        attention_factor=scaling.number("attention_factor", grown),
        freq_factors=_factors(scaling, "short_factor", rope.dim // 2),
        long_factors=_factors(scaling, "long_factor", rope.dim // 2),
    )


def _factors(scaling: Fields, name: str, count: int) -> tuple[float, ...]:
    values = scaling.values.get(name)
    sound = isinstance(values, list) and all(isinstance(v, int | float) and 0 < v < 1e9 for v in values)
    if not isinstance(values, list) or not sound or len(values) != count:
        raise scaling.fail(name, f"{count} numbers greater than 0", values)
    return tuple(float(np.float32(value)) for value in values)


def _llama3(scaling: Fields, rope: Rope) -> Rope:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if high <= low:
        raise scaling.fail("high_freq_factor", f"more than low_freq_factor ({low})", high)
    return replace(rope, factor=scaling.number("factor"), low_freq_factor=low, high_freq_factor=high)


def _yarn(scaling: Fields, rope: Rope, may_truncate: bool) -> Rope:
    truncate = "truncate" not in scaling.values or scaling.given("truncate")
    if not truncate and not may_truncate:
        raise UnsupportedError(f"{scaling.origin}: yarn with truncate false is not supported.")
    attention_factor = scaling.number("attention_factor") if scaling.has("attention_factor") else None
    if attention_factor is None and scaling.given("mscale") and scaling.given("mscale_all_dim"):
        numerator = yarn_magnitude(rope.factor, scaling.number("mscale", positive=False))
        attention_factor = numerator / yarn_magnitude(rope.factor, scaling.number("mscale_all_dim", positive=False))
    return replace(
        rope,
        attention_factor=attention_factor,
        truncate=truncate,
        beta_fast=scaling.number("beta_fast") if scaling.given("beta_fast") else 32.0,
        beta_slow=scaling.number("beta_slow") if scaling.given("beta_slow") else 1.0,
    )

"""Converts between ModelConfig and the architecture keys of a GGUF file.

Key names are those of the GGUF specification; their use is that of llama.cpp's loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.containers.base import Source
from bitsmith.containers.gguf.metadata_values import GgufArray, Value, ValueType, array, f32, string, u32
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import LINEARS, MAX_EXPERTS, MAX_LAYERS, Experts, ModelConfig, Rope
from bitsmith.models.arch.delta_config import delta_from_gguf, delta_to_gguf
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.gguf_layers import layer_facts_of_gguf, layer_keys
from bitsmith.models.arch.llamacpp import (
    LOGIT_CAPS,
    SQUARE_ATTENTION,
    USUAL_BETAS,
    check_keys,
    gemma_scale,
    reads_rope_freqs,
    usual_unrotated,
)
from bitsmith.models.arch.llamacpp import MAX_LAYERS as LLAMA_CPP_LAYERS
from bitsmith.models.arch.rope import llama3_freq_factors, rope_magnitude, yarn_freq_factors, yarn_magnitude
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec, spec_of_gguf
from bitsmith.models.arch.tensors import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, expected_tensors


def config_to_gguf(config: ModelConfig, *, name: str) -> dict[str, Value]:
    """Typed values of general.architecture, general.name and all "{arch}." keys, in the order of llama.cpp's converter.

    The "llama3" scaling is not a key but a tensor, see `rope_freqs`. Some keys are for our own decoder only, see
    `llamacpp.IGNORED`.
    Raises UnsupportedError for what llama.cpp's loader does not read or refuses: a bias, rope_freqs.weight, more layers
    than it takes.
    """
    spec = ARCHITECTURES[config.arch]
    _check_loadable(config, spec)
    keys: dict[str, Value] = {
        "block_count": u32(config.layers),
        "context_length": u32(config.context),
        "embedding_length": u32(config.hidden),
        "feed_forward_length": u32(config.intermediate),
        "attention.head_count": u32(config.heads),
        "attention.head_count_kv": u32(config.kv_heads),
        **_rope_keys(config),
        "attention.layer_norm_rms_epsilon": f32(config.norm_eps),
        "attention.key_length": u32(config.head_dim),
        "attention.value_length": u32(config.head_dim),
        "vocab_size": u32(config.vocab),
        "rope.dimension_count": u32(config.rope.dim),
    }
    if not config.intermediate:  # all layers have experts
        del keys["feed_forward_length"]
    if config.sections:
        keys["rope.dimension_sections"] = array(list(config.sections), ValueType.INT32)
    if "n_deepstack_layers" in spec.decoder.gguf_keys:
        keys["n_deepstack_layers"] = u32(config.deepstack)
    keys |= _window_keys(config, spec) | _scale_keys(config) | _expert_keys(config) | layer_keys(config)
    keys |= delta_to_gguf(config)
    general = {"general.architecture": string(spec.gguf), "general.name": string(name)}
    return general | {f"{spec.gguf}.{key}": value for key, value in keys.items()}


def _window_keys(config: ModelConfig, spec: ArchSpec) -> dict[str, Value]:
    if not config.window:
        return {"attention.sliding_window": u32(0)} if "attention.sliding_window=0" in spec.decoder.gguf_keys else {}
    keys = {"attention.sliding_window": u32(config.window)}
    usual = spec.decoder.implied_window and config.window_layers == _every(config.layers, spec.decoder.every)
    if config.window_layers and not usual:
        pattern = [layer in config.window_layers for layer in range(config.layers)]
        keys["attention.sliding_window_pattern"] = array(pattern, ValueType.BOOL)
    return keys


def _every(layers: int, every: int) -> tuple[int, ...]:
    """Layers with a window, if one of `every` layers has none."""
    return tuple(layer for layer in range(layers) if every and (layer + 1) % every)


def _scale_keys(config: ModelConfig) -> dict[str, Value]:
    """Multipliers and caps. llama.cpp computes the scales of Gemma itself."""
    numbers = {
        "attn_logit_softcapping": (config.attention_softcap, 0.0),
        "final_logit_softcapping": (config.logit_softcap, -1.0 if config.family.gguf in LOGIT_CAPS else 0.0),
        "residual_scale": (config.residual_scale, 1.0),
        "logit_scale": (config.logit_divisor, 1.0),
        "attention.temperature_scale": (config.temperature, 0.0),
    }
    known = config.decoder.gguf_keys
    if not config.decoder.embedding_root:
        numbers["embedding_scale"] = (config.embedding_scale, 1.0)
        numbers["attention.scale"] = (config.attention_scale, 0.0)
    return {key: f32(value) for key, (value, usual) in numbers.items() if key in known and value != usual} | (
        {"logit_scale": f32(config.logit_divisor)} if "logit_scale" in known else {}
    )


def _expert_keys(config: ModelConfig) -> dict[str, Value]:
    experts = config.experts
    if experts is None:
        return {}
    keys = {"expert_count": u32(experts.count), "expert_used_count": u32(experts.used)}
    if "expert_feed_forward_length" in config.decoder.gguf_keys:
        keys["expert_feed_forward_length"] = u32(experts.width)
    if experts.shared:
        keys["expert_shared_feed_forward_length"] = u32(experts.shared)
    return keys


def rope_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of frequency divisors that a file needs, float32 [dim / 2], by name."""
    rope = config.rope
    if rope.scaling == "longrope":
        both = zip((ROPE_LONG, ROPE_SHORT), (rope.long_factors, rope.freq_factors), strict=True)
        return {name: np.asarray(factors, np.float32) for name, factors in both}
    factors = rope_freqs(config)
    return {} if factors is None else {ROPE_FREQS: factors}


def rope_freqs(config: ModelConfig) -> np.ndarray | None:
    """The values of rope_freqs.weight, float32 [dim / 2], or None if the file needs no such tensor."""
    rope = config.rope
    if rope.scaling == "llama3":
        return llama3_freq_factors(rope)
    if _yarn_as_factors(config):
        return yarn_freq_factors(rope)
    return np.asarray(rope.freq_factors, np.float32) if rope.freq_factors else None


def _yarn_as_factors(config: ModelConfig) -> bool:
    """Whether YaRN is written as rope_freqs.weight, because llama.cpp ignores the keys of its parameters."""
    rope = config.rope
    usual = (rope.beta_fast, rope.beta_slow) == USUAL_BETAS
    return rope.scaling == "yarn" and not usual and reads_rope_freqs(ARCHITECTURES[config.arch].gguf)


def _check_rotation(config: ModelConfig, spec: ArchSpec) -> None:
    """Raise UnsupportedError if llama.cpp rotates other layers."""
    wanted = _unrotated(spec, config.layers, config.window, config.window_layers)
    if config.unrotated != wanted:
        raise UnsupportedError(
            f"the model does not rotate the layers {list(config.unrotated)}, but llama.cpp's {spec.gguf} does not "
            f"rotate {list(wanted)}, whatever the file says; write for instance --to=native/int8."
        )


def _check_loadable(config: ModelConfig, spec: ArchSpec) -> None:
    if config.layers > LLAMA_CPP_LAYERS:
        raise UnsupportedError(
            f"the model has {config.layers} layers, and llama.cpp takes at most {LLAMA_CPP_LAYERS}; write --to "
            "native/... instead."
        )
    if spec.gguf in SQUARE_ATTENTION and config.heads * config.head_dim != config.hidden:
        raise UnsupportedError(
            f"{config.heads} heads of {config.head_dim} are not as wide as the model ({config.hidden}), and llama.cpp "
            f"loads no such {spec.gguf} model; write for instance --to=native/int8."
        )
    for tensor in expected_tensors(config):
        _, _, part = tensor.removesuffix(".bias").rpartition(".")
        if tensor.endswith(".bias") and part in LINEARS and part not in spec.decoder.gguf_biases:
            raise UnsupportedError(
                f"{tensor}: llama.cpp reads no such bias in a {spec.gguf} model, so it would not load the GGUF file; "
                "write another format, such as --to=native/int8."
            )
    _check_rotation(config, spec)
    if config.experts is not None and config.experts.layers is not None:
        raise UnsupportedError(
            f"only some layers of the model have experts, and llama.cpp loads no such {spec.gguf} model; write --to "
            "native/... instead."
        )
    if ROPE_FREQS in rope_tensors(config) and not reads_rope_freqs(spec.gguf):
        raise UnsupportedError(
            f"the model's rope scaling needs the tensor {ROPE_FREQS}, which llama.cpp does not read in a {spec.gguf} "
            "model; write for instance --to=native/int8."
        )


def _rope_keys(config: ModelConfig) -> dict[str, Value]:
    rope, as_factors = config.rope, _yarn_as_factors(config)
    keys: dict[str, Value] = {}
    if rope.scaling in ("linear", "yarn") and not as_factors:
        keys["rope.scaling.type"] = string(rope.scaling)
        keys["rope.scaling.factor"] = f32(rope.factor)
    if "rope.scaling.original_context_length=4096" in config.decoder.gguf_keys and rope.scaling != "yarn":
        keys["rope.scaling.original_context_length"] = u32(rope.original_context or 4096)
    if rope.scaling == "yarn" and not as_factors:
        keys["rope.scaling.original_context_length"] = u32(rope.original_context)
        keys["rope.scaling.yarn_beta_fast"] = f32(rope.beta_fast)
        keys["rope.scaling.yarn_beta_slow"] = f32(rope.beta_slow)
    if rope.attention_factor == 1.0 and "rope.scaling.yarn_log_multiplier" in config.decoder.gguf_keys:
        keys["rope.scaling.yarn_log_multiplier"] = f32(1.0)  # llama.cpp divides its own factor by that of this number
    elif rope.attention_factor is not None or as_factors:
        # llama.cpp multiplies this key with YaRN's own 0.1 ln(factor) + 1
        own = yarn_magnitude(rope.factor) if rope.scaling == "yarn" and not as_factors else 1.0
        keys["rope.scaling.attn_factor"] = f32(rope_magnitude(rope) / own)
    keys["rope.freq_base"] = f32(rope.theta)
    if config.window and config.decoder.local_rope:
        keys["rope.freq_base_swa"] = f32((config.local_rope or rope).theta)
    return keys


def config_from_gguf(metadata: Mapping[str, Any], source: Source) -> ModelConfig:
    """The decoder's configuration, from a GGUF file's keys, names of tensors and rope_freqs.weight.

    metadata: `Value` or plain Python value by key
    source: the opened file
    Raises FileError for missing keys and impossible values, UnsupportedError for what the decoder does not support.
    """
    origin = str(source.path)
    plain = {key: plain_value(value) for key, value in metadata.items() if not key.startswith("tokenizer.")}
    architecture = Fields(plain, origin).text("general.architecture")
    own = Fields(plain, origin, f"{architecture}.")
    count = own.integer("expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    slides = bool(own.integer("attention.sliding_window", 0, minimum=0))
    spec = spec_of_gguf(architecture, origin, experts=count > 0, windowed=slides)
    fields = Fields(plain, origin, f"{spec.gguf}.")
    layers = fields.integer("block_count", maximum=MAX_LAYERS)
    drafts = _drafts(fields, spec, layers)
    layers -= drafts
    hidden = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count")
    window, window_layers = _window(fields, spec, layers, metadata)
    facts = layer_facts_of_gguf(fields, spec, layers, window_layers, source.tensors)
    kv_heads = facts.pop("kv_heads", None) or fields.integer("attention.head_count_kv", heads)
    if heads % kv_heads or heads % (facts.get("full_kv_heads") or heads):
        raise fields.fail("attention.head_count_kv", f"a divisor of attention.head_count ({heads})", kv_heads)
    check_keys(plain, spec.gguf, origin, (*spec.decoder.gguf_keys, *_own_keys(spec)))
    tensors = source.tensors
    embedding = tensors.get("token_embd.weight")
    full_dim = _head_dim(fields, spec, hidden, heads)
    head_dim = facts.pop("head_dim", full_dim)
    rope = _rope(fields, spec, full_dim, source)
    config = ModelConfig(
        arch=spec.name,
        layers=layers,
        hidden=hidden,
        intermediate=facts.pop("intermediate", None)
        or fields.integer("feed_forward_length", 0 if count else None, minimum=0),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=fields.integer("vocab_size", embedding.rows if embedding else None),
        context=fields.integer("context_length"),
        norm_eps=fields.epsilon("attention.layer_norm_rms_epsilon"),
        rope=rope,
        local_rope=_local_rope(fields, spec, rope) if window else None,
        window=window,
        window_layers=window_layers,
        unrotated=_unrotated(spec, layers, window, window_layers),
        tied="output.weight" not in tensors,
        qk_norm=spec.qk_norm,
        activation=spec.decoder.activation,
        experts=_experts(fields, spec, count, layers, source),
        **facts,
        delta=delta_from_gguf(fields, spec, layers, source),
        drafts=drafts,
    )
    config = replace(config, **_numbers(fields, spec, config))
    linears = (f"blk.{layer}.{name}" for layer in range(layers) for name in config.biased_linears)
    return config.with_biases({linear for linear in linears if f"{linear}.bias" in tensors})


def _drafts(fields: Fields, spec: ArchSpec, layers: int) -> int:
    """The number of last layers that draft tokens, and are not run."""
    if "nextn_predict_layers" not in spec.decoder.gguf_keys:
        return 0
    return fields.integer("nextn_predict_layers", 0, minimum=0, maximum=layers - 1)


def _own_keys(spec: ArchSpec) -> tuple[str, ...]:
    """Keys that only our decoder reads."""
    return ("attention.scale",) if spec.decoder.query_scalar else ()


def _numbers(fields: Fields, spec: ArchSpec, config: ModelConfig) -> dict[str, Any]:
    """Multipliers and caps, by attribute of `ModelConfig`."""
    row, found = spec.decoder, dict[str, Any]()
    for key, attribute, usual in (
        ("attn_logit_softcapping", "attention_softcap", 0.0),
        ("final_logit_softcapping", "logit_softcap", LOGIT_CAPS.get(spec.gguf, 0.0)),
        ("residual_scale", "residual_scale", 1.0),
        ("embedding_scale", "embedding_scale", 1.0),
        ("logit_scale", "logit_divisor", 1.0),
        ("attention.scale", "attention_scale", 0.0),
        ("attention.temperature_scale", "temperature", 0.0),
    ):
        if key in row.gguf_keys:
            found[attribute] = fields.number(key, usual, positive=key == "logit_scale")
    if "rope.dimension_sections" in row.gguf_keys:
        sections = fields.values.get(f"{fields.prefix}rope.dimension_sections")
        if not isinstance(sections, list) or len(sections) != 4 or not all(isinstance(n, int) for n in sections):
            raise fields.fail("rope.dimension_sections", "four numbers of pairs", sections)
        found["sections"] = tuple(sections)
        found["deepstack"] = fields.integer("n_deepstack_layers", 0, minimum=0)
    if found.get("temperature"):
        found["temperature_length"] = config.rope.original_context or config.context
    found["attention_scale"] = found.get("attention_scale", row.score_scale)
    if row.query_scalar:
        found["attention_scale"] = fields.number("attention.scale", gemma_scale(config))
    if row.embedding_root:
        found["embedding_scale"] = config.hidden**0.5
    return found


def _experts(fields: Fields, spec: ArchSpec, count: int, layers: int, source: Source) -> Experts | None:
    row = spec.decoder.experts
    if row is None or (row.switch and not count):
        return None
    used = fields.integer("expert_used_count", maximum=count)
    width = fields.integer("expert_feed_forward_length", fields.integer("feed_forward_length", 0, minimum=0) or None)
    routed = tuple(layer for layer in range(layers) if f"blk.{layer}.ffn_gate_inp.weight" in source.tensors)
    normalize = row.gguf_normalize if row.normalize is None else row.normalize
    shared = fields.integer("expert_shared_feed_forward_length", width, minimum=0) if row.shared else 0
    return Experts(count, used, width, normalize, None if len(routed) in (0, layers) else routed, shared)


def _local_rope(fields: Fields, spec: ArchSpec, rope: Rope) -> Rope | None:
    """The rotation of layers with a window; None if it is that of the others."""
    how = spec.decoder.local_rope
    if not how:
        return None
    theta = fields.number("rope.freq_base_swa", 10000.0 if how == "theta" else rope.theta)
    dim = fields.integer("rope.dimension_count_swa", rope.dim) if spec.decoder.layer_facts else rope.dim
    local = Rope(theta, dim, rope.interleaved)
    return None if local == rope else local


def _unrotated(spec: ArchSpec, layers: int, window: int, window_layers: tuple[int, ...]) -> tuple[int, ...]:
    """Layers without rotation, as llama.cpp's code has them."""
    if spec.decoder.rotates == "windowed":
        return tuple(layer for layer in range(layers) if layer not in window_layers) if window else ()
    return () if spec.decoder.rotates == "all" else usual_unrotated(layers)


def gguf_notes(metadata: Mapping[str, Any], config: ModelConfig, origin: str) -> tuple[str, ...]:
    """Notes about the keys of a GGUF file that bitsmith does not know."""
    plain = {key: plain_value(value) for key, value in metadata.items() if not key.startswith("tokenizer.")}
    spec = ARCHITECTURES[config.arch]
    return check_keys(plain, spec.gguf, origin, (*spec.decoder.gguf_keys, *_own_keys(spec)))


def plain_value(value: Any) -> Any:
    """A scalar or a list. A list of integers that are all equal (one per layer) becomes that number."""
    if isinstance(value, (Value, GgufArray)):
        value = value.plain()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool):
        return value[0] if all(item == value[0] for item in value) else value
    return value


def _head_dim(fields: Fields, spec: ArchSpec, hidden: int, heads: int) -> int:
    if not fields.has("attention.key_length") and hidden % heads:
        raise fields.fail("attention.head_count", f"a divisor of embedding_length ({hidden})", heads)
    head_dim = fields.integer("attention.key_length", hidden // heads)
    value_dim = fields.integer("attention.value_length", hidden // heads if hidden % heads == 0 else head_dim)
    rotated = fields.integer("rope.dimension_count", head_dim)
    partial = "partial_rotary_factor" in spec.decoder.rope_fields and rotated <= head_dim and not rotated % 2
    if head_dim % 2 or (rotated != head_dim and not partial):
        raise fields.fail("rope.dimension_count", f"the head's length ({head_dim}), an even number", rotated)
    if value_dim != head_dim:
        raise UnsupportedError(
            f"{fields.origin}: keys of {head_dim} and values of {value_dim} dimensions; the decoder needs them equal."
        )
    return head_dim


def _window(fields: Fields, spec: ArchSpec, layers: int, metadata: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The window in tokens (0 for none), and the layers with a window (empty for all).

    The pattern is one boolean or 0 or 1 for each layer, or a number n: one layer of n has no window (llama.cpp).
    """
    key = f"{fields.prefix}attention.sliding_window_pattern"
    window, pattern = fields.integer("attention.sliding_window", 0, minimum=0), metadata.get(key)
    if isinstance(pattern, (Value, GgufArray)):
        pattern = pattern.plain()
    if isinstance(pattern, np.ndarray):
        pattern = pattern.tolist()
    if not window:
        return 0, ()
    if pattern is None:
        return window, _every(layers, spec.decoder.every)
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        every = fields.integer("attention.sliding_window_pattern", minimum=0)
        pattern = [not every or layer % every < every - 1 for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers or any(slides not in (0, 1) for slides in pattern):
        raise fields.fail("attention.sliding_window_pattern", f"{layers} booleans", pattern)
    sliding = tuple(layer for layer, slides in enumerate(pattern) if slides)
    return (window, sliding) if sliding else (0, ())


def _rope(fields: Fields, spec: ArchSpec, head_dim: int, source: Source) -> Rope:
    factor = fields.number(
        "rope.scaling.factor", fields.number("rope.scale_linear", 0.0, positive=False), positive=False
    )
    if factor < 0:
        raise fields.fail("rope.scaling.factor", "a number greater than 0", factor)
    kind = fields.text("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 1
    known = ("none", "linear", "yarn", *(("longrope",) if "long_factor" in spec.decoder.rope_fields else ()))
    if kind not in known:
        raise UnsupportedError(f"{fields.origin}: rope scaling {kind!r} is not supported; known are linear and yarn.")
    theta = fields.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise fields.fail("rope.freq_base", "a number greater than 1", theta)
    dim = fields.integer("rope.dimension_count", head_dim)
    interleaved = spec.permuted or spec.decoder.interleaved
    rope = Rope(theta=theta, dim=dim, interleaved=interleaved, freq_factors=_freq_factors(source, dim))
    multiplier = fields.number("rope.scaling.attn_factor", 1.0)
    if "long_factor" in spec.decoder.rope_fields and ROPE_LONG in source.tensors and ROPE_SHORT in source.tensors:
        return replace(
            rope,
            scaling="longrope",
            original_context=fields.integer("rope.scaling.original_context_length"),
            attention_factor=multiplier,
            freq_factors=_freq_factors(source, dim, ROPE_SHORT),
            long_factors=_freq_factors(source, dim, ROPE_LONG),
        )
    if kind == "yarn" and factor:
        rope = replace(
            rope,
            scaling="yarn",
            truncate="truncate" not in spec.decoder.rope_fields,
            factor=factor,
            original_context=fields.integer("rope.scaling.original_context_length", 0, minimum=0)
            or fields.integer("context_length"),
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        )
    elif kind == "linear" and factor not in (0.0, 1.0):
        rope = replace(rope, scaling="linear", factor=factor)
    if rope.scaling == "yarn" and "rope.scaling.yarn_log_multiplier" in spec.decoder.gguf_keys:
        share = fields.number("rope.scaling.yarn_log_multiplier", 0.0, positive=False)
        if share:
            rope = replace(rope, attention_factor=yarn_magnitude(factor) / yarn_magnitude(factor, share))
    return rope if multiplier == 1.0 else replace(rope, attention_factor=rope_magnitude(rope) * multiplier)


def _freq_factors(source: Source, head_dim: int, name: str = ROPE_FREQS) -> tuple[float, ...]:
    if name not in source.tensors:
        return ()
    info = source.tensors[name]
    if info.parameters != head_dim // 2:
        raise FileError(
            f"{source.path}: {name} has {info.parameters} values, expected {head_dim // 2}, half a head's length."
        )
    values = source.rows(name).reshape(-1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise FileError(f"{source.path}: {name} holds values that are not finite and greater than 0.")
    return tuple(float(value) for value in values)

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
from bitsmith.models.arch.config import MAX_LAYERS, ModelConfig, Rope
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.rope import llama3_freq_factors, rope_magnitude, yarn_magnitude
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec, spec_of_gguf
from bitsmith.models.arch.tensors import ROPE_FREQS, expected_tensors


def config_to_gguf(config: ModelConfig, *, name: str) -> dict[str, Value]:
    """Typed values of general.architecture, general.name and all "{arch}." keys, in the order of llama.cpp's converter.

    The "llama3" scaling is not a key but a tensor, see `rope_freqs`. llama.cpp reads no sliding window for our
    families and attends to all tokens. The key is written for our own decoder.
    Raises UnsupportedError for a bias that llama.cpp's loader does not read.
    """
    spec = ARCHITECTURES[config.arch]
    _check_biases(config, spec)
    keys: dict[str, Value] = {
        "block_count": u32(config.layers),
        "context_length": u32(config.context),
        "embedding_length": u32(config.hidden),
        "feed_forward_length": u32(config.intermediate),
        "attention.head_count": u32(config.heads),
        "attention.head_count_kv": u32(config.kv_heads),
        **_rope_keys(config.rope),
        "attention.layer_norm_rms_epsilon": f32(config.norm_eps),
        "attention.key_length": u32(config.head_dim),
        "attention.value_length": u32(config.head_dim),
        "vocab_size": u32(config.vocab),
        "rope.dimension_count": u32(config.rope.dim),
    }
    if config.window:
        keys["attention.sliding_window"] = u32(config.window)
        if config.window_layers:
            pattern = [layer in config.window_layers for layer in range(config.layers)]
            keys["attention.sliding_window_pattern"] = array(pattern, ValueType.BOOL)
    general = {"general.architecture": string(spec.gguf), "general.name": string(name)}
    return general | {f"{spec.gguf}.{key}": value for key, value in keys.items()}


def rope_freqs(config: ModelConfig) -> np.ndarray | None:
    """The values of rope_freqs.weight, float32 [dim / 2], or None if the file needs no such tensor."""
    if config.rope.scaling == "llama3":
        return llama3_freq_factors(config.rope)
    return np.asarray(config.rope.freq_factors, np.float32) if config.rope.freq_factors else None


def _check_biases(config: ModelConfig, spec: ArchSpec) -> None:
    for tensor in expected_tensors(replace(config, layers=min(config.layers, 1))):
        part, _, kind = tensor.removeprefix("blk.0.").rpartition(".")
        if kind == "bias" and part not in spec.decoder.gguf_biases:
            raise UnsupportedError(
                f"{tensor}: llama.cpp reads no such bias in a {spec.gguf} model, so it would not load the GGUF file; "
                "write another format, such as --to=native/int8."
            )


def _rope_keys(rope: Rope) -> dict[str, Value]:
    keys: dict[str, Value] = {}
    if rope.scaling in ("linear", "yarn"):
        keys["rope.scaling.type"] = string(rope.scaling)
        keys["rope.scaling.factor"] = f32(rope.factor)
    if rope.scaling == "yarn":
        keys["rope.scaling.original_context_length"] = u32(rope.original_context)
        keys["rope.scaling.yarn_beta_fast"] = f32(rope.beta_fast)
        keys["rope.scaling.yarn_beta_slow"] = f32(rope.beta_slow)
    if rope.attention_factor is not None:
        # llama.cpp multiplies this key with YaRN's own 0.1 ln(factor) + 1
        own = yarn_magnitude(rope.factor) if rope.scaling == "yarn" else 1.0
        keys["rope.scaling.attn_factor"] = f32(rope_magnitude(rope) / own)
    keys["rope.freq_base"] = f32(rope.theta)
    return keys


def config_from_gguf(metadata: Mapping[str, Any], source: Source) -> ModelConfig:
    """The decoder's configuration, from a GGUF file's keys, names of tensors and rope_freqs.weight.

    metadata: `Value` or plain Python value by key
    source: the opened file
    Raises FileError for missing keys and impossible values, UnsupportedError for what the decoder does not support.
    """
    origin = str(source.path)
    plain = {key: plain_value(value) for key, value in metadata.items() if not key.startswith("tokenizer.")}
    spec = spec_of_gguf(Fields(plain, origin).text("general.architecture"), origin)
    fields = Fields(plain, origin, f"{spec.gguf}.")
    if fields.integer("expert_count", 0, minimum=0):
        raise UnsupportedError(f"{origin}: the decoder does not support mixtures of experts yet.")
    layers = fields.integer("block_count", maximum=MAX_LAYERS)
    hidden = fields.integer("embedding_length")
    heads = fields.integer("attention.head_count")
    kv_heads = fields.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise fields.fail("attention.head_count_kv", f"a divisor of attention.head_count ({heads})", kv_heads)
    window, window_layers = _window(fields, layers)
    tensors = source.tensors
    embedding = tensors.get("token_embd.weight")
    return ModelConfig(
        arch=spec.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=(head_dim := _head_dim(fields, hidden, heads)),
        vocab=fields.integer("vocab_size", embedding.rows if embedding else None),
        context=fields.integer("context_length"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope=_rope(fields, spec, head_dim, source),
        window=window,
        window_layers=window_layers,
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
        qk_norm=spec.qk_norm,
    )


def plain_value(value: Any) -> Any:
    """A scalar or a list. A list of integers that are all equal (one per layer) becomes that number."""
    if isinstance(value, (Value, GgufArray)):
        value = value.plain()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool):
        return value[0] if all(item == value[0] for item in value) else value
    return value


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("attention.key_length") and hidden % heads:
        raise fields.fail("attention.head_count", f"a divisor of embedding_length ({hidden})", heads)
    head_dim = fields.integer("attention.key_length", hidden // heads)
    value_dim = fields.integer("attention.value_length", hidden // heads if hidden % heads == 0 else head_dim)
    rotated = fields.integer("rope.dimension_count", head_dim)
    if head_dim % 2 or rotated != head_dim:
        raise fields.fail("rope.dimension_count", f"the head's length ({head_dim}), an even number", rotated)
    if value_dim != head_dim:
        raise UnsupportedError(
            f"{fields.origin}: keys of {head_dim} and values of {value_dim} dimensions; the decoder needs them equal."
        )
    return head_dim


def _window(fields: Fields, layers: int) -> tuple[int, tuple[int, ...]]:
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    pattern = fields.values.get(f"{fields.prefix}attention.sliding_window_pattern")
    if not window or pattern is None:
        return window, ()
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise fields.fail("attention.sliding_window_pattern", f"{layers} booleans", pattern)
    return window, tuple(layer for layer, slides in enumerate(pattern) if slides)


def _rope(fields: Fields, spec: ArchSpec, head_dim: int, source: Source) -> Rope:
    factor = fields.number(
        "rope.scaling.factor", fields.number("rope.scale_linear", 0.0, positive=False), positive=False
    )
    if factor < 0:
        raise fields.fail("rope.scaling.factor", "a number greater than 0", factor)
    kind = fields.text("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 1
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedError(f"{fields.origin}: rope scaling {kind!r} is not supported; known are linear and yarn.")
    theta = fields.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise fields.fail("rope.freq_base", "a number greater than 1", theta)
    rope = Rope(theta=theta, dim=head_dim, interleaved=spec.permuted, freq_factors=_freq_factors(source, head_dim))
    multiplier = fields.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn" and factor:
        rope = replace(
            rope,
            scaling="yarn",
            factor=factor,
            original_context=fields.integer("rope.scaling.original_context_length", fields.integer("context_length")),
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        )
    elif kind == "linear" and factor not in (0.0, 1.0):
        rope = replace(rope, scaling="linear", factor=factor)
    return rope if multiplier == 1.0 else replace(rope, attention_factor=rope_magnitude(rope) * multiplier)


def _freq_factors(source: Source, head_dim: int) -> tuple[float, ...]:
    if ROPE_FREQS not in source.tensors:
        return ()
    info = source.tensors[ROPE_FREQS]
    if info.parameters != head_dim // 2:
        raise FileError(
            f"{source.path}: {ROPE_FREQS} has {info.parameters} values, expected {head_dim // 2}, half a head's length."
        )
    values = source.rows(ROPE_FREQS).reshape(-1)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise FileError(f"{source.path}: {ROPE_FREQS} holds values that are not finite and greater than 0.")
    return tuple(float(value) for value in values)

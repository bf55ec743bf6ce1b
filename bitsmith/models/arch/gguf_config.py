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
from bitsmith.models.arch.config import LINEARS, MAX_LAYERS, ModelConfig, Rope
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.llamacpp import MAX_LAYERS as LLAMA_CPP_LAYERS
from bitsmith.models.arch.llamacpp import SQUARE_ATTENTION, USUAL_BETAS, check_keys, reads_rope_freqs
from bitsmith.models.arch.rope import llama3_freq_factors, rope_magnitude, yarn_freq_factors, yarn_magnitude
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec, spec_of_gguf
from bitsmith.models.arch.tensors import ROPE_FREQS, expected_tensors


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
    if config.window:
        keys["attention.sliding_window"] = u32(config.window)
        if config.window_layers:
            pattern = [layer in config.window_layers for layer in range(config.layers)]
            keys["attention.sliding_window_pattern"] = array(pattern, ValueType.BOOL)
    general = {"general.architecture": string(spec.gguf), "general.name": string(name)}
    return general | {f"{spec.gguf}.{key}": value for key, value in keys.items()}


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


def _check_loadable(config: ModelConfig, spec: ArchSpec) -> None:
    if config.layers > LLAMA_CPP_LAYERS:
        raise UnsupportedError(
            f"the model has {config.layers} layers, and llama.cpp takes at most {LLAMA_CPP_LAYERS}; write --to "
            "native/... instead."
        )
    if spec.gguf in SQUARE_ATTENTION and config.heads * config.head_dim != config.hidden:
        raise UnsupportedError(
            f"{config.heads} heads of {config.head_dim} are not as wide as the model ({config.hidden}), and llama.cpp "
            f"loads no such {spec.gguf} model; write --to native/... instead."
        )
    for tensor in expected_tensors(config):
        _, _, part = tensor.removesuffix(".bias").rpartition(".")
        if tensor.endswith(".bias") and part not in spec.decoder.gguf_biases:
            raise UnsupportedError(
                f"{tensor}: llama.cpp reads no such bias in a {spec.gguf} model, so it would not load the GGUF file; "
                "write another format, such as --to=native/int8."
            )
    if rope_freqs(config) is not None and not reads_rope_freqs(spec.gguf):
        raise UnsupportedError(
            f"the model's rope scaling needs the tensor {ROPE_FREQS}, which llama.cpp does not read in a {spec.gguf} "
            "model; write --to native/... instead."
        )


def _rope_keys(config: ModelConfig) -> dict[str, Value]:
    rope, as_factors = config.rope, _yarn_as_factors(config)
    keys: dict[str, Value] = {}
    if rope.scaling in ("linear", "yarn") and not as_factors:
        keys["rope.scaling.type"] = string(rope.scaling)
        keys["rope.scaling.factor"] = f32(rope.factor)
    if rope.scaling == "yarn" and not as_factors:
        keys["rope.scaling.original_context_length"] = u32(rope.original_context)
        keys["rope.scaling.yarn_beta_fast"] = f32(rope.beta_fast)
        keys["rope.scaling.yarn_beta_slow"] = f32(rope.beta_slow)
    if rope.attention_factor is not None or as_factors:
        # llama.cpp multiplies this key with YaRN's own 0.1 ln(factor) + 1
        own = yarn_magnitude(rope.factor) if rope.scaling == "yarn" and not as_factors else 1.0
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
    window, window_layers = _window(fields, layers, metadata)
    check_keys(plain, spec.gguf, origin)
    tensors = source.tensors
    embedding = tensors.get("token_embd.weight")
    config = ModelConfig(
        arch=spec.name,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("feed_forward_length"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=(head_dim := _head_dim(fields, hidden, heads)),
        vocab=fields.integer("vocab_size", embedding.rows if embedding else None),
        context=fields.integer("context_length"),
        norm_eps=fields.epsilon("attention.layer_norm_rms_epsilon"),
        rope=_rope(fields, spec, head_dim, source),
        window=window,
        window_layers=window_layers,
        tied="output.weight" not in tensors,
        qk_norm=spec.qk_norm,
    )
    linears = (f"blk.{layer}.{name}" for layer in range(layers) for name in LINEARS)
    return config.with_biases({linear for linear in linears if f"{linear}.bias" in tensors})


def gguf_notes(metadata: Mapping[str, Any], config: ModelConfig, origin: str) -> tuple[str, ...]:
    """Notes about the keys of a GGUF file that bitsmith does not know."""
    plain = {key: plain_value(value) for key, value in metadata.items() if not key.startswith("tokenizer.")}
    return check_keys(plain, ARCHITECTURES[config.arch].gguf, origin)


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


def _window(fields: Fields, layers: int, metadata: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The window in tokens (0 for none), and the layers with a window (empty for all).

    The pattern is one boolean or 0 or 1 for each layer, or a number n: one layer of n has no window (llama.cpp).
    """
    key = f"{fields.prefix}attention.sliding_window_pattern"
    window, pattern = fields.integer("attention.sliding_window", 0, minimum=0), metadata.get(key)
    if isinstance(pattern, (Value, GgufArray)):
        pattern = pattern.plain()
    if isinstance(pattern, np.ndarray):
        pattern = pattern.tolist()
    if not window or pattern is None:
        return window, ()
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
            original_context=fields.integer("rope.scaling.original_context_length", 0, minimum=0)
            or fields.integer("context_length"),
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

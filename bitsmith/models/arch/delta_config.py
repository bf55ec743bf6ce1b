"""Gated delta nets in config.json and in GGUF's keys. Defaults of missing fields are those of transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bitsmith.containers.base import Source
from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, u32
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import DeltaNet, ModelConfig
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.spec import ArchSpec

_EVERY = 4  # one layer of so many has attention


def delta_from_hf(fields: Fields, spec: ArchSpec, layers: int) -> DeltaNet | None:
    """The delta nets of a config.json; None if the family has none.

    Raises FileError for impossible values, UnsupportedError for attention without a gate.
    """
    if not spec.family.delta:
        return None
    if not fields.flag("attn_output_gate", True):
        raise UnsupportedError(f"{fields.origin}: attn_output_gate false is not supported; expected true.")
    return replace(delta_shape(fields), layers=_hf_layers(fields, layers), fused=spec.family.delta == "fused")


def delta_shape(fields: Fields) -> DeltaNet:
    """The shape of the delta nets of a config.json, of no layer yet. Raises FileError for impossible values."""
    key_heads = fields.integer("linear_num_key_heads", 16)
    value_heads = fields.integer("linear_num_value_heads", 32)
    if value_heads % key_heads:
        raise fields.fail("linear_num_value_heads", f"a multiple of linear_num_key_heads ({key_heads})", value_heads)
    return DeltaNet(
        key_heads,
        value_heads,
        fields.integer("linear_key_head_dim", 128),
        fields.integer("linear_value_head_dim", 128),
        fields.integer("linear_conv_kernel_dim", 4, minimum=2),
        (),
    )


def _hf_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    types = fields.values.get("layer_types")
    if types is None:
        return _by_interval(fields.integer("full_attention_interval", _EVERY), layers)
    known = ("full_attention", "linear_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        raise fields.fail("layer_types", f"{layers} entries, each one of {', '.join(known)}", types)
    return tuple(layer for layer, kind in enumerate(types) if kind == "linear_attention")


def _by_interval(every: int, layers: int) -> tuple[int, ...]:
    return tuple(layer for layer in range(layers) if (layer + 1) % every)


def delta_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The fields of config.json."""
    net = config.delta
    if net is None:
        return {}
    kinds = ["linear_attention" if layer in net.layers else "full_attention" for layer in range(config.layers)]
    return {
        "layer_types": kinds,
        "linear_conv_kernel_dim": net.taps,
        "linear_key_head_dim": net.key_dim,
        "linear_num_key_heads": net.key_heads,
        "linear_num_value_heads": net.value_heads,
        "linear_value_head_dim": net.value_dim,
    }


def delta_to_gguf(config: ModelConfig) -> dict[str, Value]:
    """The keys of a GGUF file without "{arch}.". Raises UnsupportedError for heads that llama.cpp does not load."""
    net = config.delta
    if net is None:
        return {}
    if net.key_dim != net.value_dim:
        raise UnsupportedError(
            f"heads of {net.key_dim} (linear_key_head_dim) and {net.value_dim} (linear_value_head_dim): llama.cpp "
            "loads such a model only if they are equal; write for instance --to=native/int8."
        )
    return {
        "ssm.conv_kernel": u32(net.taps),
        "ssm.state_size": u32(net.key_dim),
        "ssm.group_count": u32(net.key_heads),
        "ssm.time_step_rank": u32(net.value_heads),
        "ssm.inner_size": u32(net.values),
        "attention.recurrent_layers": array([layer in net.layers for layer in range(config.layers)], ValueType.BOOL),
        "full_attention_interval": u32(_interval(config)),
    }


def _interval(config: ModelConfig) -> int:
    """The interval that gives the layers with attention; the usual one if none does, since readers take the list."""
    assert config.delta is not None
    fits = (every for every in range(1, config.layers + 1) if _by_interval(every, config.layers) == config.delta.layers)
    return next(fits, _EVERY)


def delta_from_gguf(fields: Fields, spec: ArchSpec, layers: int, source: Source) -> DeltaNet | None:
    """The delta nets of a GGUF file; None if the family has none. Raises FileError for impossible values."""
    if not spec.family.delta:
        return None
    key_heads, value_heads = fields.integer("ssm.group_count"), fields.integer("ssm.time_step_rank")
    size, inner = fields.integer("ssm.state_size"), fields.integer("ssm.inner_size")
    if value_heads % key_heads:
        raise fields.fail("ssm.time_step_rank", f"a multiple of ssm.group_count ({key_heads})", value_heads)
    if inner != value_heads * size:
        raise fields.fail(
            "ssm.inner_size", f"{value_heads} heads (ssm.time_step_rank) of {size} (ssm.state_size)", inner
        )
    return DeltaNet(
        key_heads,
        value_heads,
        size,
        size,
        fields.integer("ssm.conv_kernel", minimum=2),
        _gguf_layers(fields, layers),
        tiled=spec.family.delta == "apart",
        fused=any(name.endswith(".ssm_in.weight") for name in source.tensors),
    )


def _gguf_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    """The list may also have entries for layers that draft tokens."""
    found = fields.values.get(f"{fields.prefix}attention.recurrent_layers")
    if found is None:
        return _by_interval(fields.integer("full_attention_interval", _EVERY), layers)
    if not isinstance(found, list) or len(found) < layers or any(each not in (0, 1) for each in found):
        raise fields.fail("attention.recurrent_layers", f"{layers} booleans", found)
    return tuple(layer for layer in range(layers) if found[layer])

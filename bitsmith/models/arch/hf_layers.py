"""Reads and writes the fields of config.json that make layers differ in their shapes: Gemma 4's.

transformers has two ways to say what layers without a window have: own fields, and since version 5 per_layer_config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.spec import ArchSpec

_FULL = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
STILL = 1e30  # divisor of the frequencies of pairs that do not turn, as llama.cpp's converter writes it
DEFAULT_ROPES: Mapping[str, Any] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}


def layer_facts(fields: Fields, spec: ArchSpec, layers: int, sliding: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of `ModelConfig`, by name; none for families without such fields.

    sliding: the layers with a window
    Raises UnsupportedError for attention in both directions, and for layers that differ in another way.
    """
    if not spec.decoder.layer_facts:
        return {}
    if fields.values.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise UnsupportedError(
            f"{fields.origin}: use_bidirectional_attention = {fields.values['use_bidirectional_attention']!r:.40} is "
            'not supported; expected null or "vision", which changes nothing in texts.'
        )
    same = fields.flag("attention_k_eq_v", False)
    own = _full_layers(fields, layers, sliding)
    shared = fields.integer("num_kv_shared_layers", 0, minimum=0, maximum=layers - 1)
    kinds = {layer in sliding for layer in range(layers)}
    if shared and {layer in sliding for layer in range(layers - shared)} != kinds:
        raise fields.fail("num_kv_shared_layers", "a layer of each kind before them", shared)
    width = fields.integer("hidden_size_per_layer_input", spec.family.defaults["layer_width"], minimum=0)
    vocab = fields.integer("vocab_size", spec.family.defaults.get("vocab_size"))
    if width and fields.integer("vocab_size_per_layer_input", 262144) != vocab:
        raise fields.fail("vocab_size_per_layer_input", f"vocab_size ({vocab})", fields.values.get("vocab_size"))
    kv_heads = own.get("num_key_value_heads", 0) if same or "per_layer_config" in fields.values else 0
    return {
        "full_head_dim": own.get("head_dim", 512),
        "full_kv_heads": kv_heads,
        "keys_as_values": same,
        "shared_layers": shared,
        "wide_shared": fields.flag("use_double_wide_mlp", False),
        "layer_width": width,
    }


def _full_layers(fields: Fields, layers: int, sliding: tuple[int, ...]) -> dict[str, int]:
    """What layers without a window have: "head_dim" and "num_key_value_heads", where config.json says it."""
    each = fields.values.get("per_layer_config")
    if each is None:
        return {name: fields.integer(own) for name, own in _FULL.items() if fields.has(own)}
    if not isinstance(each, dict):
        raise fields.fail("per_layer_config", "an object by layer", each)
    full = [layer for layer in range(layers) if layer not in sliding]
    parts = {str(layer): values for layer, values in each.items() if values}
    told = list(parts.values())
    alike = all(isinstance(part, dict) and part == told[0] and part.keys() <= _FULL.keys() for part in told)
    if told and (not alike or sorted(parts) != sorted(map(str, full))):
        raise UnsupportedError(
            f"{fields.origin}: per_layer_config: expected the same head_dim and num_key_value_heads for the layers "
            f"{full}, and nothing else, found {str(each)[:120]}."
        )
    if not told:  # all layers are alike
        return {"head_dim": fields.integer("head_dim", 256)}
    inner = Fields(told[0], f"{fields.origin}: per_layer_config")
    return {"head_dim": fields.integer("head_dim", 256)} | {name: inner.integer(name) for name in told[0]}


def proportional(rope: Rope, share: float, factor: float, fields: Fields) -> Rope:
    """The rotation of a whole head in which only the first `share` of all pairs turn.

    rope: the same with all pairs turning
    """
    turning = int(share * rope.dim // 2)
    if factor != 1.0:
        raise UnsupportedError(f"{fields.origin}: proportional rotation with factor {factor:g} is not supported.")
    if not 0 < turning <= rope.dim // 2:
        raise fields.fail("partial_rotary_factor", "a share that turns a pair at least", share)
    factors = (1.0,) * turning + (STILL,) * (rope.dim // 2 - turning)
    return Rope(rope.theta, rope.dim, rope.interleaved, freq_factors=factors)


def layer_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of config.json that say it."""
    if not config.decoder.layer_facts:
        return {}
    same = config.keys_as_values
    if config.full_kv_heads not in (0, config.kv_heads) and not same:
        raise UnsupportedError(
            "layers without a window have other key heads, but do not use keys as values, and transformers has no such "
            f"{config.arch} model; write GGUF."
        )
    local = config.local_rope or config.rope
    return {
        "global_head_dim": config.full_head_dim or config.head_dim,
        "num_global_key_value_heads": config.full_kv_heads or config.kv_heads if same else None,
        "attention_k_eq_v": same,
        "num_kv_shared_layers": config.shared_layers,
        "use_double_wide_mlp": config.wide_shared,
        "hidden_size_per_layer_input": config.layer_width,
        "vocab_size_per_layer_input": config.vocab,
        "enable_moe_block": config.experts is not None,
        "rope_parameters": {
            "full_attention": _full_rope(config.rope),
            "sliding_attention": {"rope_type": "default", "rope_theta": local.theta},
        },
    }


def _full_rope(rope: Rope) -> dict[str, Any]:
    turning = sum(factor == 1.0 for factor in rope.freq_factors) if rope.freq_factors else rope.dim // 2
    still = tuple(factor for factor in rope.freq_factors if factor != 1.0)
    if rope.scaling != "none" or any(factor < STILL * 0.99 for factor in still):
        raise UnsupportedError("the rotation is none that config.json has fields for; write GGUF.")
    if rope.freq_factors[:turning] != (1.0,) * turning and rope.freq_factors:
        raise UnsupportedError("the pairs that turn are not the first ones, for which config.json has no field.")
    share = turning / (rope.dim // 2)
    return {"rope_type": "proportional", "partial_rotary_factor": share, "rope_theta": rope.theta}

"""What each layer keeps of earlier tokens, by config.json: full, windowed, latent, shared and recurrent layers."""

from __future__ import annotations

from bitsmith.planner.network import LayerCache
from bitsmith.planner.numbers import Numbers

_PATTERN = 6  # Gemma 3: every sixth layer sees everything
_SLIDING = ("sliding_attention", "chunked_attention")
_RECURRENT = ("linear_attention", "mamba", "recurrent")


def layer_caches(numbers: Numbers) -> tuple[LayerCache, ...]:
    """One entry a layer. Raises FileError for fields that make no sense."""
    fields = numbers.fields
    if numbers.latent:
        return (LayerCache(keys=numbers.latent),) * numbers.layers
    width = numbers.kv_heads * numbers.head_dim
    window = _window_size(numbers)
    shared = fields.integer("num_kv_shared_layers", 0, minimum=0)
    found = []
    for layer, kind in enumerate(_kinds(numbers, window)):
        if kind in _RECURRENT:
            found.append(LayerCache(state=_state(numbers)))
        elif layer >= numbers.layers - shared:
            found.append(LayerCache())
        else:
            found.append(LayerCache(width, width, window if kind in _SLIDING else 0))
    return tuple(found)


def _window_size(numbers: Numbers) -> int:
    """Tokens of the window; 0: none."""
    fields = numbers.fields
    for name in ("sliding_window", "attention_chunk_size", "sliding_window_size"):
        if fields.has(name):
            return fields.integer(name, minimum=0)
    return 0


def _kinds(numbers: Numbers, window: int) -> list[str]:
    """The kind of each layer, in the words of config.json's layer_types."""
    fields, layers = numbers.fields, numbers.layers
    types = fields.values.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers or not all(isinstance(kind, str) for kind in types):
            raise fields.fail("layer_types", f"{layers} names of kinds of layers", types)
        return types
    full, sliding = "full_attention", "sliding_attention"
    if fields.has("full_attention_interval"):  # Qwen3-Next
        every = fields.integer("full_attention_interval")
        return [full if (layer + 1) % every == 0 else "linear_attention" for layer in range(layers)]
    if fields.has("attn_layer_period"):  # Jamba
        every, first = fields.integer("attn_layer_period"), fields.integer("attn_layer_offset", 0, minimum=0)
        return [full if layer % every == first else "mamba" for layer in range(layers)]
    if fields.has("attention_chunk_size"):  # Llama 4
        every = fields.integer("no_rope_layer_interval", 4)
        return [full if (layer + 1) % every == 0 else sliding for layer in range(layers)]
    rule = numbers.family.window if numbers.family else "all"
    if not window or rule == "never":
        return [full] * layers
    if rule == "by_field":
        first = (
            fields.integer("max_window_layers", 28, minimum=0) if fields.flag("use_sliding_window", False) else layers
        )
        return [full if layer < first else sliding for layer in range(layers)]
    if rule == "all":
        return [sliding] * layers
    every = 2 if rule == "alternating" else fields.integer("sliding_window_pattern", _PATTERN)
    return [full if (layer + 1) % every == 0 else sliding for layer in range(layers)]


def _state(numbers: Numbers) -> int:
    """Numbers that a recurrent layer keeps, convolution included."""
    fields = numbers.fields
    if fields.has("linear_num_value_heads"):  # gated delta rule (Qwen3-Next): a matrix a head
        keys, values = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
        key_heads, heads = fields.integer("linear_num_key_heads"), fields.integer("linear_num_value_heads")
        mixed = 2 * key_heads * keys + heads * values
        return heads * keys * values + mixed * (fields.integer("linear_conv_kernel_dim", 4) - 1)
    inner = fields.integer("mamba_expand", 2) * numbers.hidden  # selective state space (Gu and Dao 2023)
    return inner * (fields.integer("mamba_d_state", 16) + fields.integer("mamba_d_conv", 4) - 1)

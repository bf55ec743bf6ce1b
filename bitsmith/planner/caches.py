"""Reads from config.json what each layer keeps of earlier tokens: full, window, latent, shared or recurrent."""

from __future__ import annotations

from bitsmith.models.arch.delta_config import delta_shape
from bitsmith.planner.network import LayerCache
from bitsmith.planner.numbers import Numbers

_PATTERN = 6  # Gemma 3: every sixth layer sees everything
_SLIDING = ("sliding_attention", "chunked_attention")
_FULL = ("full_attention", "attention", "global_attention")
RECURRENT = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "gated_delta_net")
_NOTHING = ("mlp", "moe")
_LETTERS = {
    "L": "sliding_attention",
    "G": "full_attention",
    "M": "mamba",
    "*": "full_attention",
    "-": "mlp",
    "E": "moe",
}


def layer_caches(numbers: Numbers) -> tuple[LayerCache, ...]:
    """The cache of each layer. Raises FileError for fields with impossible values."""
    fields = numbers.fields
    if numbers.latent:
        return (LayerCache(keys=numbers.latent),) * numbers.layers
    width = numbers.kv_heads * numbers.head_dim
    window = _window_size(numbers)
    shared = fields.integer("num_kv_shared_layers", 0, minimum=0, maximum=numbers.layers - 1)
    found = []
    for layer, kind in enumerate(layer_kinds(numbers)):
        if kind in RECURRENT:
            found.append(LayerCache(state=_state(numbers)))
        elif kind in _NOTHING or layer >= numbers.layers - shared:
            found.append(LayerCache())
        else:
            found.append(LayerCache(width, width, window if kind in _SLIDING else 0))
    return tuple(found)


def _window_size(numbers: Numbers) -> int:
    """Tokens of the attention window; 0 if there is none."""
    fields = numbers.fields
    for name in ("sliding_window", "attention_chunk_size", "sliding_window_size"):
        if fields.has(name):
            return fields.integer(name, minimum=0)
    return 0


def layer_kinds(numbers: Numbers) -> list[str]:
    """The kind of each layer, with the names that config.json's layer_types uses."""
    fields, layers, window = numbers.fields, numbers.layers, _window_size(numbers)
    types = fields.values.get("layer_types")
    if types is not None:
        known = (*_FULL, *_SLIDING, *RECURRENT, *_NOTHING)
        if not isinstance(types, list) or len(types) != layers or not all(kind in known for kind in types):
            raise fields.fail("layer_types", f"{layers} of {', '.join(known)}", types)
        return types
    letters = fields.values.get("hybrid_override_pattern")  # Nemotron-H
    if letters is not None:
        if not isinstance(letters, str) or len(letters) != layers or not set(letters) <= set(_LETTERS):
            raise fields.fail("hybrid_override_pattern", f"{layers} letters of {''.join(_LETTERS)}", letters)
        return [_LETTERS[letter] for letter in letters]
    full, sliding = "full_attention", "sliding_attention"
    if fields.has("full_attention_interval") or (numbers.family and numbers.family.delta):  # Qwen3-Next
        every = fields.integer("full_attention_interval", 4)
        return [full if (layer + 1) % every == 0 else "linear_attention" for layer in range(layers)]
    if fields.has("attn_layer_period"):  # Jamba
        every, first = fields.integer("attn_layer_period"), fields.integer("attn_layer_offset", 0, minimum=0)
        return [full if layer % every == first else "mamba" for layer in range(layers)]
    if fields.has("attention_chunk_size"):  # Llama 4
        every = fields.integer("no_rope_layer_interval", 4)
        return [full if (layer + 1) % every == 0 else sliding for layer in range(layers)]
    pattern = fields.values.get("sliding_window_pattern")
    if window and isinstance(pattern, str) and set(pattern) == {"L", "G"}:  # EXAONE 4
        return [_LETTERS[pattern[layer % len(pattern)]] for layer in range(layers)]
    rule = numbers.family.window if numbers.family else "pattern" if pattern is not None else "never"
    if not window or rule == "never" or fields.values.get("use_sliding_window") is False:
        return [full] * layers
    if rule == "by_field":
        first = (
            fields.integer("max_window_layers", 28, minimum=0) if fields.flag("use_sliding_window", False) else layers
        )
        return [full if layer < first else sliding for layer in range(layers)]
    if rule == "all" or (rule == "by_flag" and fields.flag("use_sliding_window", False)):
        return [sliding] * layers
    if rule == "by_flag":
        return [full] * layers
    every = 2 if rule == "alternating" else fields.integer("sliding_window_pattern", _PATTERN)
    return [full if (layer + 1) % every == 0 else sliding for layer in range(layers)]


def _state(numbers: Numbers) -> int:
    """Numbers that a recurrent layer keeps, including those of its convolution."""
    fields = numbers.fields
    if fields.has("linear_num_value_heads"):  # gated delta rule (Qwen3-Next): a matrix a head
        return delta_shape(fields).state
    if fields.has("conv_L_cache"):  # LFM2: the last inputs of a short convolution
        return numbers.hidden * fields.integer("conv_L_cache")
    inner = (
        fields.integer("mamba_expand", fields.integer("expand", 2)) * numbers.hidden
    )  # selective state space (Gu and Dao 2023)
    return inner * (
        fields.integer("mamba_d_state", fields.integer("ssm_state_size", 16)) + fields.integer("mamba_d_conv", 4) - 1
    )

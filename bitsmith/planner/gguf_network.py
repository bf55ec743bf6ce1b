"""Makes a Network from the keys and tensors of a GGUF file."""

from __future__ import annotations

from typing import Any

from bitsmith.containers.base import Source
from bitsmith.models.arch.config import MAX_LAYERS
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.gguf_config import plain_value
from bitsmith.planner.network import LayerCache, Network
from bitsmith.recipe.category import layer_of

# every how many layers one has full attention, as in llama.cpp; 1: no layer has a window, 0: all have one
_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4, "olmo3": 4, "llama4": 4}
_EVERY |= {"llama": 0, "qwen2": 0, "qwen3": 0, "phi3": 0}


def network_from_gguf(source: Source, *, name: str) -> Network:
    """The network of an opened GGUF file. Raises FileError for missing keys and impossible values."""
    origin = str(source.path)
    plain = {key: plain_value(value) for key, value in source.metadata.items() if not key.startswith("tokenizer.")}
    arch = Fields(plain, origin).text("general.architecture")
    fields = Fields(plain, origin, f"{arch}.")
    layers = fields.integer("block_count", maximum=MAX_LAYERS)
    if arch.startswith("qwen3"):  # their layers that draft tokens are counted, but not run
        layers -= fields.integer("nextn_predict_layers", 0, minimum=0, maximum=layers - 1)
    hidden = fields.integer("embedding_length")
    heads = _each(fields, "attention.head_count", layers, None)
    kv_heads = _each(fields, "attention.head_count_kv", layers, heads)
    embedding = source.tensors.get("token_embd.weight")
    experts = fields.integer("expert_count", 0, minimum=0)
    used = fields.integer("expert_used_count", 0, minimum=0, maximum=experts) if experts else 0
    inner = max(_each(fields, "feed_forward_length", layers, [0]))
    width = fields.integer("expert_feed_forward_length", inner, minimum=0)
    shared = fields.integer("expert_shared_count", 0, minimum=0) * width
    shared = fields.integer("expert_shared_feed_forward_length", shared, minimum=0)
    head_dim = fields.integer("attention.key_length", max(hidden // max(*heads, 1), 1))
    window = fields.integer("attention.sliding_window", 0, minimum=0)
    sliding = _sliding(fields, arch, layers) if window else [False] * layers
    narrow = fields.integer("attention.key_length_swa", head_dim)
    widths = [count * (narrow if slides else head_dim) for count, slides in zip(kv_heads, sliding, strict=True)]
    _check(fields, source, layers, hidden, widths)
    return Network(
        name=name,
        arch=arch,
        hidden=hidden,
        vocab=fields.integer("vocab_size", embedding.rows if embedding else None),
        context=fields.integer("context_length", 0, minimum=0),
        heads=max(heads),
        kv_heads=max(kv_heads),
        head_dim=head_dim,
        intermediate=used * width + shared if used else inner,
        caches=_caches(fields, widths, [window if slides else 0 for slides in sliding], head_dim),
        tensors=tuple(source.tensors.values()),
        experts=experts,
        experts_used=used,
    )


def _check(fields: Fields, source: Source, layers: int, hidden: int, widths: list[int]) -> None:
    """Raise FileError if the keys contradict the tensors. widths: numbers of a token's keys in each layer"""
    found = {layer_of(name) for name in source.tensors} - {-1}
    if found and not layers - 1 <= max(found) <= layers + 8:  # layers beyond the last draft further tokens
        raise fields.fail("block_count", f"the {max(found) + 1} layers that have tensors", layers)
    embedding = source.tensors.get("token_embd.weight")
    if embedding is not None and embedding.cols != hidden:
        raise fields.fail("embedding_length", f"the {embedding.cols} columns of token_embd.weight", hidden)
    for layer, width in enumerate(widths):
        keys = source.tensors.get(f"blk.{layer}.attn_k.weight")
        if keys is not None and width and keys.rows != width:
            raise fields.fail("attention.head_count_kv", f"heads for the {keys.rows} rows of {keys.name}", width)


def _each(fields: Fields, name: str, layers: int, default: list[int] | None) -> list[int]:
    """One number for each layer. The file may hold one number for all layers, or a list."""
    value = fields.values.get(fields.prefix + name)
    if value is None and default is not None:
        return default if len(default) == layers else default * layers
    if isinstance(value, list):
        sound = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 31 for n in value)
        if len(value) < layers or not sound:
            raise fields.fail(name, f"a number, or {layers} of them", value)
        return [int(n) for n in value[:layers]]
    return [fields.integer(name, minimum=0)] * layers


def _caches(fields: Fields, widths: list[int], windows: list[int], head_dim: int) -> tuple[LayerCache, ...]:
    layers = len(widths)
    rank = fields.integer("attention.kv_lora_rank", 0, minimum=0)
    if rank:
        return (LayerCache(keys=rank + fields.integer("rope.dimension_count")),) * layers
    value_dim = fields.integer("attention.value_length", head_dim)
    shared = fields.integer("attention.shared_kv_layers", 0, minimum=0)
    state = _state(fields)
    every = fields.integer("full_attention_interval", 0, minimum=0)
    recurrent = fields.values.get(f"{fields.prefix}attention.recurrent_layers")
    if not isinstance(recurrent, list) or len(recurrent) < layers:
        recurrent = [width == 0 or bool(every and (layer + 1) % every) for layer, width in enumerate(widths)]
    found = []
    for layer, (width, window) in enumerate(zip(widths, windows, strict=True)):
        if state and recurrent[layer]:
            found.append(LayerCache(state=state))
        elif layer >= layers - shared:
            found.append(LayerCache())
        else:
            found.append(LayerCache(width, width // head_dim * value_dim if value_dim != head_dim else width, window))
    return tuple(found)


def _sliding(fields: Fields, arch: str, layers: int) -> list[bool]:
    """Which layers have a window. If the file does not say, llama.cpp's rule for the architecture; else no layer."""
    pattern: Any = fields.values.get(f"{fields.prefix}attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers:
            raise fields.fail("attention.sliding_window_pattern", f"{layers} booleans", pattern)
        return [bool(slides) for slides in pattern]
    every = fields.integer("attention.sliding_window_pattern", _EVERY.get(arch, 1), minimum=0)
    return [not every or bool((layer + 1) % every) for layer in range(layers)]


def _state(fields: Fields) -> int:
    """Numbers that a recurrent layer keeps: its states and its convolution's last inputs. 0 if there is none."""
    if not fields.has("ssm.inner_size"):
        return 0
    inner, states = fields.integer("ssm.inner_size"), fields.integer("ssm.state_size")
    groups = fields.integer("ssm.group_count", 0, minimum=0)
    mixed = inner + 2 * groups * states
    return inner * states + mixed * (fields.integer("ssm.conv_kernel", 4) - 1)

"""The keys of a GGUF file that make layers differ in their shapes: Gemma 4's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, u32
from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.spec import ArchSpec


def layer_keys(config: ModelConfig) -> dict[str, Value]:
    """The keys without "{arch}.", which replace those of the same name. Empty for families without such keys."""
    if not config.decoder.layer_facts:
        return {}
    if not config.window:
        raise UnsupportedError(
            f"no layer of the model has a window, and llama.cpp loads no such {config.family.gguf} model; write --to "
            "native/... instead."
        )
    first = config.layers - config.shared_layers
    others = [
        layer for layer, each in enumerate(config.specs) if each.keys_of not in (None, first - 2 + (not each.window))
    ]
    if others:
        raise UnsupportedError(
            f"layer {others[0]} uses the keys of layer {config.specs[others[0]].keys_of}, and llama.cpp takes those of "
            f"the layers {first - 2} (with a window) and {first - 1} (without); write for instance --to=native/int8."
        )
    full, local = config.full_head_dim or config.head_dim, (config.local_rope or config.rope).dim
    sizes = {
        "attention.key_length": full,
        "attention.value_length": full,
        "attention.key_length_swa": config.head_dim,
        "attention.value_length_swa": config.head_dim,
        "rope.dimension_count_swa": local,
        "attention.shared_kv_layers": config.shared_layers,
        "embedding_length_per_layer_input": config.layer_width,
    }
    keys = {name: u32(size) for name, size in sizes.items()}
    if config.full_kv_heads:
        keys["attention.head_count_kv"] = array([spec.kv_heads for spec in config.specs], ValueType.INT32)
    if config.wide_shared:
        keys["feed_forward_length"] = array([spec.intermediate for spec in config.specs], ValueType.INT32)
    return keys


def layer_facts_of_gguf(
    fields: Fields, spec: ArchSpec, layers: int, sliding: tuple[int, ...], tensors: Collection[str]
) -> dict[str, Any]:
    """Attributes of `ModelConfig` by name, "head_dim", "kv_heads" and "intermediate" among them.

    sliding: the layers with a window
    tensors: names of the file's tensors; they say which layers use their keys as values
    Raises FileError for impossible values, UnsupportedError for layers that differ in another way.
    """
    if not spec.decoder.layer_facts:
        return {}
    shared = fields.integer("attention.shared_kv_layers", 0, minimum=0, maximum=layers - 1)
    first = layers - shared
    if shared and {layer in sliding for layer in range(first)} != {layer in sliding for layer in range(layers)}:
        raise fields.fail("attention.shared_kv_layers", "a layer of each kind before them", shared)
    inner = _by_kind(fields, "feed_forward_length", layers, lambda layer: layer < first)
    if False in inner and True in inner and inner[False] not in (inner[True], 2 * inner[True]):
        raise fields.fail("feed_forward_length", "the same width or twice as much in shared layers", inner[False])
    heads = _by_kind(fields, "attention.head_count_kv", layers, lambda layer: layer in sliding)
    own = [layer for layer in range(first) if layer not in sliding]
    same = [layer for layer in own if f"blk.{layer}.attn_v.weight" not in tensors]
    if same and same != own:
        raise UnsupportedError(
            f"{fields.origin}: blk.{same[0]}.attn_v.weight is missing, but blk.{min(set(own) - set(same))} has its "
            "own; bitsmith knows only models in which all layers without a window use their keys as values, or none."
        )
    full = fields.integer("attention.key_length")
    return {
        "head_dim": fields.integer("attention.key_length_swa", full),
        "full_head_dim": full,
        "kv_heads": heads.get(True, heads.get(False)),
        "full_kv_heads": heads.get(False, 0) if heads.get(False) != heads.get(True) else 0,
        "intermediate": inner[True],
        "wide_shared": False in inner and inner[False] != inner[True],
        "keys_as_values": bool(same),
        "shared_layers": shared,
        "layer_width": fields.integer("embedding_length_per_layer_input", 0, minimum=0),
    }


def _by_kind(fields: Fields, name: str, layers: int, kind: Callable[[int], bool]) -> Mapping[bool, int]:
    """The number of each kind of layer. Raises UnsupportedError if layers of a kind differ."""
    value = fields.values.get(fields.prefix + name)
    if not isinstance(value, list):
        return {kind(layer): fields.integer(name) for layer in range(layers)}
    sound = len(value) == layers and all(isinstance(n, int) and 0 < n < 1 << 31 for n in value)
    if not sound:
        raise fields.fail(name, f"a number, or {layers} of them", value)
    found: dict[bool, int] = {}
    for layer, number in enumerate(value):
        if found.setdefault(kind(layer), number) != number:
            raise UnsupportedError(f"{fields.origin}: {fields.prefix}{name} = {str(value)[:60]} is not supported.")
    return found

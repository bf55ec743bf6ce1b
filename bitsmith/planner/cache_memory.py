"""Bytes of the cache of keys and values, by context, batch and type."""

from __future__ import annotations

from collections.abc import Mapping

from bitsmith.errors import UsageError, quoted
from bitsmith.planner.network import LayerCache, Network

BITS: Mapping[str, float] = {  # bits a number; ggml's types are blocks of 32 and include their float16 scales
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "fp8": 8,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
}


def check_type(type: str) -> str:
    """The cache type in lower case. Raises UsageError for an unknown type."""
    name = {"fp16": "f16", "int8": "q8_0"}.get(type.lower(), type.lower())
    if name not in BITS:
        raise UsageError(f"--kv={quoted(type)}: unknown; expected {', '.join(BITS)}.")
    return name


def cache_bytes(network: Network, context: int, *, batch: int = 1, type: str = "f16", windows: bool = True) -> int:
    """Bytes for `batch` sequences of `context` tokens.

    windows: True if a layer with a window keeps only the tokens of the window; False if the runtime keeps all tokens
    Recurrent states are always float32.
    """
    return sum(layer_bytes(cache, context, batch=batch, type=type, windows=windows) for cache in network.caches)


def layer_bytes(cache: LayerCache, context: int, *, batch: int, type: str, windows: bool) -> int:
    """Bytes of one layer's cache; the options are those of `cache_bytes`."""
    kept = min(context, cache.window) if cache.window and windows else context
    return batch * (4 * cache.state + int(kept * (cache.keys + cache.values) * BITS[type] / 8))

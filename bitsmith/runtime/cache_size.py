"""Bytes that a cache takes."""

from __future__ import annotations

from bitsmith.models.arch.config import ModelConfig

_BYTES = {"f16": 2.0, "f32": 4.0, "q8_0": 34 / 32}  # of a number


def cache_bytes(config: ModelConfig, context: int, type: str) -> int:
    """Bytes of the keys, values and states of one text of `context` tokens. type: see `CoreCache`"""
    numbers = sum(
        2 * spec.kv_heads * (spec.head_dim + 31) // 32 * 32
        for spec in config.specs
        if spec.keys_of is None and spec.mixer == "attention"
    )
    states = 0 if config.delta is None else len(config.delta.layers) * config.delta.state
    return round(numbers * context * _BYTES.get(type, 4.0)) + 4 * states

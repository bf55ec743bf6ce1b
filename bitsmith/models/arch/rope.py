"""Rotary frequencies with every scaling, in numpy (Su et al. 2021; YaRN: Peng et al. 2023, arXiv:2309.00071)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from bitsmith.models.arch.config import Rope


def rope_frequencies(rope: Rope) -> np.ndarray:
    """Angle per position of each rotated pair: float32 [dim / 2], computed in float64."""
    plain = _plain(rope)
    if rope.scaling == "llama3":
        return np.asarray(plain / _llama3_factors(rope, plain), np.float32)
    if rope.freq_factors:
        plain = plain / np.asarray(rope.freq_factors, np.float64)
    if rope.scaling == "linear":
        plain = plain / rope.factor
    elif rope.scaling == "yarn":
        kept = _yarn_kept(rope)
        plain = plain * kept + plain / rope.factor * (1 - kept)
    return np.asarray(plain, np.float32)


def long_frequencies(rope: Rope) -> np.ndarray:
    """The same under longrope for texts longer than `original_context` (Ding et al. 2024, arXiv:2402.13753)."""
    return rope_frequencies(replace(rope, freq_factors=rope.long_factors))


def rope_magnitude(rope: Rope) -> float:
    """Multiplier of cos and sin: `attention_factor` if given, else YaRN's 0.1 ln(factor) + 1, else 1.0."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    return yarn_magnitude(rope.factor) if rope.scaling == "yarn" else 1.0


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """YaRN's 0.1 multiplier ln(factor) + 1 (section 3.4); 1.0 for a factor of 1 or less."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_freq_factors(rope: Rope) -> np.ndarray:
    """Divisors of the plain frequencies under "llama3" scaling: float32 [dim / 2], GGUF's rope_freqs.weight.

    Frequencies with a wavelength below original_context / high_freq_factor do not change. Those with a wavelength above
    original_context / low_freq_factor are divided by `factor`. Those between are interpolated (Llama 3.1 model card).
    """
    return np.asarray(_llama3_factors(rope, _plain(rope)), np.float32)


def yarn_freq_factors(rope: Rope) -> np.ndarray:
    """Divisors of the plain frequencies under YaRN, for readers that do not know its parameters: float32 [dim / 2]."""
    kept = _yarn_kept(rope)
    own = np.asarray(rope.freq_factors, np.float64) if rope.freq_factors else np.ones(rope.dim // 2)
    return np.asarray(own / (kept + (1 - kept) / rope.factor), np.float32)


def _plain(rope: Rope) -> np.ndarray:
    return np.asarray(np.power(rope.theta, -np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim))


def _llama3_factors(rope: Rope, plain: np.ndarray) -> np.ndarray:
    turns = rope.original_context * plain / (2 * math.pi)  # rotations within the original context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / rope.factor + smooth))


def _yarn_kept(rope: Rope) -> np.ndarray:
    """YaRN's share of each unscaled frequency: 1 for fast pairs, 0 for slow pairs, a ramp between."""

    def pair_of(rotations: float) -> float:
        turns = rope.original_context / (rotations * 2 * math.pi)
        return rope.dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    span = high - low if high != low else 0.001
    return np.asarray(1.0 - np.clip((np.arange(rope.dim // 2, dtype=np.float64) - low) / span, 0.0, 1.0))

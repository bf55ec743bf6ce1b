"""Random blocks, inputs with outlying features, and statistics of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitsmith.calibration.stats import Stats
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.groups import LinearGroup
from tests.runtime.small import TINY

LLAMA = replace(TINY, layers=1)
CONFIGS = {
    "llama": LLAMA,
    "llama without grouped heads": replace(LLAMA, kv_heads=4),
    "qwen2": replace(LLAMA, arch="qwen2", qkv_bias=True, tied=True),
    "qwen3": replace(LLAMA, arch="qwen3", qk_norm=True, head_dim=16),
}


def stats_of(x: np.ndarray, *, gram: bool = True) -> Stats:
    """Statistics of an input float32 [tokens, cols]; the whole input is the sample."""
    return Stats(
        count=len(x),
        square=np.square(x, dtype=np.float64).sum(0),
        mean_abs=np.abs(x).mean(0),
        max_abs=np.abs(x).max(0),
        gram=x.T @ x if gram else None,
        sample=x,
    )


def outlying(tokens: int, cols: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs, a few of whose features are eight times larger: float32 [tokens, cols]."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, cols)) @ (np.eye(cols) + 0.3 * rng.standard_normal((cols, cols)) / cols**0.5)
    x[:, rng.choice(cols, max(1, cols // 32), replace=False)] *= 8.0
    return np.asarray(x, np.float32)


def matrix(rows: int, cols: int, seed: int = 1) -> np.ndarray:
    """Gaussian weights, float32 [rows, cols]."""
    return np.asarray(np.random.default_rng(seed).standard_normal((rows, cols)) * 0.05, np.float32)


def block_tensors(config: ModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of block 0 by their names within the block."""
    return {name.removeprefix("blk.0."): values for name, values in tensors.items() if name.startswith("blk.0.")}


def alone(name: str = "ffn_down", producer: str | None = "ffn_up") -> LinearGroup:
    """A group of one linear."""
    return LinearGroup("down_proj_input", (name,), producer)

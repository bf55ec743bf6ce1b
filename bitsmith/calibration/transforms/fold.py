"""Folding: multiply columns of linears and divide the producer of their input; the block computes the same.

Pure functions on float32 arrays by tensor name within a block ("attn_q.weight", "attn_norm.weight", "attn_v.bias").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitsmith.calibration.stats import Stats
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.groups import LinearGroup

NORM_READERS: dict[str, tuple[str, ...]] = {
    "attn_norm": (
        *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_gate"),
        *("ssm_in", "ssm_ba", "ssm_beta", "ssm_alpha"),
    ),
    "ffn_norm": (
        *("ffn_gate", "ffn_up", "ffn_gate_up", "ffn_gate_inp", "ffn_gate_inp_shexp"),
        *("ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps", "ffn_gate_shexp", "ffn_up_shexp"),
    ),
    "output_norm": ("output",),
}
NORM_READERS["post_attention_norm"] = NORM_READERS["ffn_norm"]  # before the MLP in some families


def producer_rows(group: LinearGroup, config: ModelConfig, cols: int) -> np.ndarray:
    """The producer row that feeds each of the group's `cols` input columns: [cols] int64.

    Each row feeds one column, except in grouped attention: heads that share a value head read the same rows.
    """
    if group.repeats == 1:
        return np.arange(cols, dtype=np.int64)
    head, inside = np.divmod(np.arange(cols, dtype=np.int64), config.head_dim)
    return head // group.repeats * config.head_dim + inside


def refusal(group: LinearGroup, config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> str | None:
    """Why a scale of this group's input cannot be folded; None if it can.

    tensors: the block's tensors, to find readers of the same norm outside the group
    """
    if group.producer is None:
        return "nothing before its input can take a scale"
    producer = tensors.get(f"{group.producer}.weight")
    if producer is None:
        return f"the block has no {group.producer}.weight"
    if group.producer == "output_norm" and config.tied:
        return "the output shares the embedding table, which the scale would change"
    if producer.ndim == 1:
        readers = NORM_READERS.get(group.producer)
        if readers is None:
            return f"it is not known which other tensors read {group.producer}"
        outside = [name for name in readers if name not in group.linears and f"{name}.weight" in tensors]
        if outside and not group.alone:
            return f"{', '.join(outside)} outside the group read {group.producer} too"
    cols = [tensors[f"{name}.weight"].shape[-1] for name in group.linears]
    if set(cols) != {producer.shape[0] * group.repeats}:
        return f"{group.producer} has {producer.shape[0]} rows for {cols[0]} columns, expected {group.repeats} per row"
    return None


def fold(
    group: LinearGroup, scale: np.ndarray, tensors: Mapping[str, np.ndarray], config: ModelConfig
) -> dict[str, np.ndarray]:
    """The tensors that change when the group's input is divided by `scale` and its columns multiplied by it.

    scale: [cols] float32, finite and > 0, equal for columns that one row of the producer feeds
    The producer's bias is divided too. In exact arithmetic the block computes the same.
    Raises UsageError if `refusal` gives a reason or the factors of one row differ, TensorError if a factor is not
    finite and positive.
    """
    reason = refusal(group, config, tensors)
    if reason is not None or group.producer is None:
        raise UsageError(f"{group.name}: its scale cannot be folded: {reason}; do not rescale this group.")
    cols = tensors[f"{group.linears[0]}.weight"].shape[1]
    if scale.shape != (cols,):
        raise UsageError(f"{group.name}: expected one factor for each of {cols} columns, found {list(scale.shape)}.")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise TensorError(f"{group.name}: the factors of a rescaling must be finite and positive; calibrate again.")
    by_row = _by_row(group, scale, producer_rows(group, config, cols))
    changed = {f"{name}.weight": tensors[f"{name}.weight"] * scale for name in group.linears}
    weight = tensors[f"{group.producer}.weight"]
    changed[f"{group.producer}.weight"] = weight / (by_row if weight.ndim == 1 else by_row[:, None])
    bias = tensors.get(f"{group.producer}.bias")
    if bias is not None:
        changed[f"{group.producer}.bias"] = bias / by_row
    return changed


def rescaled_stats(stats: Stats, scale: np.ndarray) -> Stats:
    """Statistics of the same input divided by `scale`, float32 [cols]."""
    return replace(
        stats,
        square=stats.square / scale.astype(np.float64) ** 2,
        mean_abs=stats.mean_abs / scale,
        max_abs=stats.max_abs / scale,
        gram=None if stats.gram is None else stats.gram / scale / scale[:, None],
        sample=stats.sample / scale if stats.sample.size else stats.sample,
    )


def storable(scale: np.ndarray, norm: np.ndarray, dtype: np.dtype, *, offset: float = 0.0) -> np.ndarray:
    """Factors near `scale` for which norm / factor is exact in `dtype` (float16, bfloat16): float32 [cols].

    Most files store norms in 16 bits. Rounding the norm would otherwise add an error to every column it feeds.
    offset: what the file leaves out of every norm
    norm: float32 [cols]. Columns whose norm is zero, or rounds to zero or infinity, get factor 1.
    """
    with np.errstate(over="ignore"):
        divided = (norm / scale - np.float32(offset)).astype(dtype).astype(np.float32) + np.float32(offset)
    usable = (divided != 0) & np.isfinite(divided) & (norm != 0)
    return np.where(usable, norm / np.where(usable, divided, 1.0), 1.0).astype(np.float32)


def _by_row(group: LinearGroup, scale: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The factor of each producer row: [cols] -> [rows]. Raises UsageError if the factors of its columns differ."""
    by_row = np.empty(int(rows.max()) + 1, np.float32)
    by_row[rows] = scale
    if not np.array_equal(by_row[rows], scale):
        raise UsageError(
            f"{group.name}: columns fed by one row of {group.producer} need one factor, found several; make them equal."
        )
    return by_row

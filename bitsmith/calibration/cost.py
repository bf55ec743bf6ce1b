"""What calibration costs: memory from shapes, and time from shapes and a short measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bitsmith.calibration.method import Method
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.arch.config import LayerSpec, ModelConfig
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.system.memory import available_memory

LONG_SECONDS = 600.0  # longer work is announced with a cheaper choice
_FLOATS = 4  # bytes
_HESSIANS = 4  # a Hessian, its factor, the drift of its input and the correction for it
_SLABS, _SLAB_ROWS = 10, 2048  # copies of the rows being rounded, see `rounders.gptq.SLAB_ROWS`
_COLUMN_WORK = 4.5  # cost of rounding a row, in products of one row with the Hessian
_COLUMN_SECONDS = 1.5e-4  # fixed time to round one column
_STEP_SECONDS = 0.03  # fixed time of one learning step
_CANDIDATES, _SEEN_ROWS, _FIT_WORK = 40, 1024, 8000.0  # a search for factors: candidates, rows used, work per weight
_PROBE = 768


@dataclass(frozen=True)
class Cost:
    """Cost of calibration.

    seconds: expected time
    memory: bytes for hidden states, two blocks (original and quantized), the largest Hessian and the matrices derived
        from it, and the rows being rounded
    disk: bytes of hidden states in a temporary file; 0 if they stay in memory
    """

    seconds: float
    memory: int
    disk: int = 0


def calibration_cost(
    config: ModelConfig, method: Method, effort: str, tokens: int, context: int, *, memory: int | None = None
) -> Cost:
    """Cost of calibrating on `tokens` tokens in windows of `context`. The time is right within a factor of two.

    memory: bytes that hidden states may take in memory; None: half of the memory that is available now
    """
    hidden_states, on_disk = _hidden_states(config, method, effort, tokens, memory)
    seconds, largest, widest = 0.0, 0, config.hidden
    rate = _multiply_adds_per_second()
    known: dict[LayerSpec, float] = {}
    for layer in range(config.layers):
        shapes = linear_shapes(config, layer)
        largest = max(largest, sum(rows * cols for rows, cols in shapes.values()))
        widest = max(widest, *(cols for _, cols in shapes.values()))
        kind = config.specs[layer]
        if kind not in known:
            known[kind] = _block_seconds(config, layer, method, effort, tokens, context, rate)
        seconds += known[kind]
    memory = hidden_states + _FLOATS * 2 * largest
    if method.needs_text:
        memory += _FLOATS * (_HESSIANS * widest**2 + _SLABS * min(_SLAB_ROWS, widest) * widest)
    return Cost(seconds, memory, on_disk)


def _block_seconds(
    config: ModelConfig, layer: int, method: Method, effort: str, tokens: int, context: int, rate: float
) -> float:
    """Time for one block. rate: products and sums in a second"""
    matrices = tuple(linear_shapes(config, layer).values())
    block = _passed_weights(config, layer)
    work = float(block * tokens)
    passes = work * method.row.passes if method.needs_text else work
    fixed = 0.0
    if method.transform:
        passes += 3 * work
        looked = ((min(rows, _SEEN_ROWS), cols) for rows, cols in matrices)
        passes += _CANDIDATES * sum(rows * cols * (cols + _FIT_WORK) for rows, cols in looked)
    if method.row.by_column:
        passes += _COLUMN_WORK * sum(rows * cols * cols for rows, cols in matrices)
        fixed += _COLUMN_SECONDS * (1 + EFFORTS[effort].sweeps) * sum(cols for _, cols in matrices)
    if method.row.tuner is not None:
        tuning = EFFORTS[effort]
        passes += 3.0 * block * tuning.steps * tuning.batch * context  # three products per window
        fixed += _STEP_SECONDS * tuning.steps
    return passes / rate + fixed


def _passed_weights(config: ModelConfig, layer: int) -> float:
    """Number of weights in the linears of a block that a token passes."""
    experts = config.experts
    share = experts.used / experts.count if experts is not None else 1.0
    shapes = linear_shapes(config, layer)
    return sum(rows * cols * (share if "_exps." in name else 1) for name, (rows, cols) in shapes.items())


def _hidden_states(
    config: ModelConfig, method: Method, effort: str, tokens: int, memory: int | None
) -> tuple[int, int]:
    """Bytes of hidden states in memory and on disk. See `bitsmith.calibration.hidden`."""
    buffers = method.hidden_state_buffers(effort) if method.needs_text else 1
    kept = sum(2 * config.specs[layer].kv_heads * config.specs[layer].head_dim for layer in config.kept_layers)
    size = _FLOATS * tokens * (config.hidden + kept)
    room = available_memory() if memory is None else 2 * memory
    return (0, buffers * size) if room is not None and size > room // 2 // buffers else (buffers * size, 0)


def _multiply_adds_per_second() -> float:
    """Speed of float32 matrix products on this machine."""
    a = np.ones((_PROBE, _PROBE), np.float32)
    a @ a
    started = time.perf_counter()
    a @ a
    return _PROBE**3 / (time.perf_counter() - started)

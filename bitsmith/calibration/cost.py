"""What calibrating takes, known from shapes: memory, and time with a short measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from bitsmith.calibration.method import Method
from bitsmith.models.arch.config import ModelConfig
from bitsmith.quant.rounders.effort import EFFORTS

_FLOATS = 4  # bytes
_HESSIANS = 4  # a Hessian, its factor, the drift of its input and what makes up for it
_SLABS, _SLAB_ROWS = 10, 2048  # copies of the rows being rounded, see `rounders.gptq.SLAB_ROWS`
_COLUMN_WORK = 4.5  # rounding: products of a row with the Hessian, in units of one
_COLUMN_SECONDS = 1.5e-4  # what rounding a column takes, however short it is
_STEP_SECONDS = 0.03  # what a step of learning takes, however small the block is
_CANDIDATES, _SEEN_ROWS, _FIT_WORK = 40, 1024, 8000.0  # of a rescaling's search: tried, rows looked at, a weight's fit
_PROBE = 768


@dataclass(frozen=True)
class Cost:
    """What it takes.

    seconds: expected
    memory: bytes of hidden states, two blocks (original and quantized), the largest Hessian and what is made of it,
        and the rows being rounded
    """

    seconds: float
    memory: int


def calibration_cost(config: ModelConfig, method: Method, effort: str, tokens: int, context: int) -> Cost:
    """Of calibrating on so many tokens in windows of `context`; good to a factor of two in time."""
    block = block_weights(config)
    widest = max(config.hidden, config.heads * config.head_dim, config.intermediate)
    hidden_state_buffers = method.hidden_state_buffers(effort) if method.needs_text else 1
    memory = _FLOATS * (hidden_state_buffers * tokens * config.hidden + 2 * block)
    if method.needs_text:
        memory += _FLOATS * (_HESSIANS * widest**2 + _SLABS * min(_SLAB_ROWS, widest) * widest)
    rate = _multiply_adds_per_second()
    work = float(block * tokens)
    passes = work * method.row.passes if method.needs_text else work
    fixed = 0.0
    if method.transform:
        passes += 3 * work
        looked = ((min(rows, _SEEN_ROWS), cols) for rows, cols in _matrices(config))
        passes += _CANDIDATES * sum(rows * cols * (cols + _FIT_WORK) for rows, cols in looked)
    if method.row.by_column:
        passes += _COLUMN_WORK * sum(rows * cols * cols for rows, cols in _matrices(config))
        fixed += _COLUMN_SECONDS * (1 + EFFORTS[effort].sweeps) * sum(cols for _, cols in _matrices(config))
    if method.row.tuner is not None:
        tuning = EFFORTS[effort]
        passes += 3.0 * block * tuning.steps * tuning.batch * context  # three products a window
        fixed += _STEP_SECONDS * tuning.steps
    return Cost(config.layers * (passes / rate + fixed), memory)


def block_weights(config: ModelConfig) -> int:
    """Weights of the linears of one block."""
    return sum(rows * cols for rows, cols in _matrices(config))


def _matrices(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    hidden, inner = config.hidden, config.intermediate
    return (
        *((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)),
        *((inner, hidden), (inner, hidden), (hidden, inner)),
    )


def _multiply_adds_per_second() -> float:
    """Of float32 matrix products on this machine."""
    a = np.ones((_PROBE, _PROBE), np.float32)
    a @ a
    started = time.perf_counter()
    a @ a
    return _PROBE**3 / (time.perf_counter() - started)

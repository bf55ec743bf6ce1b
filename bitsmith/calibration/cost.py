"""What calibration costs: memory from shapes, and time from shapes and a short measurement."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.calibration.method import Method
from bitsmith.calibration.stats import MOST_GRAMS
from bitsmith.models.arch.block import linear_groups, linear_shapes, parts_of, with_shared_inputs
from bitsmith.models.arch.config import LayerSpec, ModelConfig
from bitsmith.models.arch.operations.base import LinearGroup
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.quant.rounders.slabs import WIDE, slab_rows
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.system.core import core
from bitsmith.system.memory import available_memory

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd

LONG_SECONDS = 600.0  # longer work is announced with a cheaper choice
_FLOATS = 4  # bytes
_SLABS = 10  # copies of the rows being rounded
_FIXED_WORK, _SWEEP_WORK = 1.5, 1.0  # rounding a row, and each sweep of descent, in products of a row and the Hessian
_FACTOR_WORK, _CORRECTION_WORK = 0.7, 1.0  # in products of two matrices of the Hessian's size
_COLUMN_SECONDS = 0.5e-5  # fixed time to round one column
_STEP_SECONDS = 0.01  # fixed time of one learning step
_TRAINED_SECONDS = 0.03  # of one step of the whole model, each block
_AWQ_TRIALS, _AWQ_ROWS = 22, 1024  # candidates for factors, and rows of a matrix that are used
_SMOOTH_TRIALS, _SMOOTH_TOKENS = 13, 512
_FIT_WORK = 600.0  # finding the scale of a block, in products per weight
_SEEN_PASSES = 2  # passes through all experts for the statistics of GPTQ, if every token counts for every expert
_TRAINING_PRODUCTS = 4  # forward, forward again in the backward pass, and two gradients
_OFFSETS = 5  # numbers beside a weight: its offset, the best one, the gradient, and Adam's two moments
_PROBE = 768
_REACHED = 0.5  # share of the rate of bfloat16 products that a whole run reaches; small operations stay float32


@dataclass(frozen=True)
class Cost:
    """Cost of calibration.

    seconds: expected time
    memory: bytes for hidden states, inputs that are kept beside them, two blocks (original and quantized), the largest
        Hessian and the matrices derived from it, and the rows being rounded
    disk: bytes of hidden states in a temporary file; 0 if they stay in memory
    products: number of multiplications, each with an addition, in the passes, Gram matrices and the rounding
    rate: products that this machine takes in a second, by a short measurement: of bfloat16 where the passes round to it
    """

    seconds: float
    memory: int
    disk: int = 0
    products: float = 0.0
    rate: float = 0.0


def calibration_cost(
    config: ModelConfig,
    method: Method,
    effort: str,
    record: CalibrationRecord,
    *,
    fine: bool = False,
    table: bool = False,
    memory: int | None = None,
) -> Cost:
    """Cost of calibrating on the tokens of a record. The time is right within a factor of two.

    fine: whether all formats have 8 bits or more; their products are float32
    table: whether the embedding is rounded too
    memory: bytes that hidden states may take in memory; None: half of the memory that is available now
    """
    rounded = None if fine else _rounded_products_per_second()
    rate = products_per_second() if rounded is None else rounded
    reached = 1.0 if rounded is None else _REACHED
    seconds = 0.0
    known: dict[LayerSpec, float] = {}
    products = 0.0
    for layer in range(config.layers):
        kind = config.specs[layer]
        if kind not in known:
            known[kind] = _block_products(config, layer, method, effort, record)
        products += known[kind]
        seconds += known[kind] / (rate * reached) + _fixed_seconds(config, layer, method, effort)
    if table:
        further = _table_products(config, method, effort, record)
        products, seconds = products + further, seconds + further / (rate * reached)
    needed, on_disk = calibration_memory(config, method, effort, record, memory=memory)
    return Cost(seconds, needed, on_disk, products, rate)


def calibration_memory(
    config: ModelConfig, method: Method, effort: str, record: CalibrationRecord, *, memory: int | None = None
) -> tuple[int, int]:
    """Bytes of memory and of disk, see `Cost`. It measures nothing. memory: see `calibration_cost`"""
    hidden_states, on_disk = _hidden_states(config, method, effort, record.tokens, memory)
    kept = _kept_inputs(config, method, effort, record.tokens, memory) if method.needs_text else 0
    blocks: dict[LayerSpec, int] = {}
    for layer in range(config.layers):
        if config.specs[layer] not in blocks:
            blocks[config.specs[layer]] = _block_bytes(config, layer, method, effort, record.all_experts)
    return hidden_states + kept + max(blocks.values()), on_disk


def training_cost(config: ModelConfig, how: EndToEnd, context: int, *, teacher: ModelConfig) -> Cost:
    """Cost of training the whole model after its blocks were rounded, beside `calibration_cost`.

    context: tokens of a window
    """
    layers = range(config.layers)
    passed = sum(_passed_weights(config, layer) for layer in layers) + config.vocab * config.hidden
    work = float(_TRAINING_PRODUCTS * passed * how.steps * how.batch * context)
    taught = sum(_passed_weights(teacher, layer) for layer in range(teacher.layers)) + teacher.vocab * teacher.hidden
    work += float(taught * how.tokens)
    seconds = work / products_per_second() + _TRAINED_SECONDS * how.steps * config.layers
    return Cost(seconds, training_memory(config, how))


def training_memory(config: ModelConfig, how: EndToEnd, *, memory: int | None = None) -> int:
    """Bytes of the training, see `training_cost`: matrices, the original's hidden states, embedding and both heads.

    memory: bytes that the run may take; hidden states of more than half of it are on disk. None: what is available now
    """
    from bitsmith.calibration.distilled import kept_bytes

    layers = range(config.layers)
    every = sum(rows * cols for layer in layers for rows, cols in linear_shapes(config, layer).values())
    bytes_each = _FLOATS + 1
    if how.depth == "all":
        bytes_each += _OFFSETS * _FLOATS - (2 * (_FLOATS - 1) if how.optimizer == "adam-8bit" else 0)
    known = kept_bytes(how.tokens, config.hidden)
    room = available_memory() if memory is None else memory
    if room is not None and known > room // 2:
        known = 0
    return bytes_each * every + _FLOATS * (2 if config.tied else 3) * config.vocab * config.hidden + known


def _block_products(config: ModelConfig, layer: int, method: Method, effort: str, record: CalibrationRecord) -> float:
    """Products in the calibration of one block."""
    tokens, row, how = record.tokens, method.row, EFFORTS[effort]
    shapes = linear_shapes(config, layer)
    matrices = tuple(shapes.values())
    block = _passed_weights(config, layer)
    attention = config.heads * config.specs[layer].head_dim * record.context  # two products, half of each is seen
    passed = (block + attention) * tokens
    further = _passed_weights(config, layer, every=True) * tokens - block * tokens if record.all_experts else 0.0
    inputs = [shapes[group.linears[0]][1] for group in linear_groups(config, layer)]
    grams = sum(cols * cols for cols in inputs) * (1.0 if config.experts is None else 0.5) * tokens
    products = 0.0
    if method.transform or not row.needs_text:
        products += passed + further
    if method.transform == "awq":
        products += grams / 2
        seen = ((min(rows, _AWQ_ROWS), cols) for rows, cols in matrices)
        products += _AWQ_TRIALS * sum(rows * cols * (cols / 2 + _FIT_WORK) for rows, cols in seen)
    elif method.transform:
        products += _SMOOTH_TRIALS * sum(rows * cols * (_SMOOTH_TOKENS + _FIT_WORK) for rows, cols in matrices)
    if row.needs_text or method.transform:
        follows = row.follows_original(how)
        products += (1 + follows) * passed + _SEEN_PASSES * further + grams * (0.5 + follows)
    if row.by_column:
        work = _FIXED_WORK + _SWEEP_WORK * how.sweeps + how.corrects
        products += sum(rows * cols * (work * cols + 2 * _FIT_WORK) for rows, cols in matrices)
        products += (_FACTOR_WORK + _CORRECTION_WORK * how.corrects) * sum(cols**3 for cols in inputs)
    if row.tuner is not None:  # three products per window
        products += passed + 3.0 * (block + attention) * how.steps * how.batch * record.context
    return products


def _table_products(config: ModelConfig, method: Method, effort: str, record: CalibrationRecord) -> float:
    """Products to round the embedding; if it is the head too, also those of a pass through the original."""
    how, found = EFFORTS[effort], 0.0
    if config.tied:
        found += sum(_passed_weights(config, layer) for layer in range(config.layers)) * record.tokens
        found += config.hidden**2 * record.tokens / 2
    work = _FIXED_WORK + _SWEEP_WORK * how.sweeps if method.row.by_column else 0.0
    return found + config.vocab * config.hidden * (work * config.hidden + 2 * _FIT_WORK)


def _fixed_seconds(config: ModelConfig, layer: int, method: Method, effort: str) -> float:
    """Time in one block that does not grow with its matrices."""
    how, row = EFFORTS[effort], method.row
    columns = sum(cols for _, cols in linear_shapes(config, layer).values())
    seconds = _COLUMN_SECONDS * (1 + how.sweeps) * columns if row.by_column else 0.0
    return seconds + (_STEP_SECONDS * how.steps if row.tuner is not None else 0.0)


def _passed_weights(config: ModelConfig, layer: int, *, every: bool = False) -> float:
    """Number of weights in the linears of a block that a token passes. every: if it passes every expert"""
    experts = config.experts
    share = experts.used / experts.count if experts is not None and not every else 1.0
    shapes = linear_shapes(config, layer)
    return sum(rows * cols * (share if "_exps." in name else 1) for name, (rows, cols) in shapes.items())


def _gram_bytes(config: ModelConfig, layer: int, method: Method, every: bool) -> int:
    """Bytes of the Gram matrices of a block that are summed together, beside those of dense linears."""
    shapes = linear_shapes(config, layer)

    def size(groups: Iterable[LinearGroup]) -> int:
        found = with_shared_inputs(groups) if every else groups
        return sum(_FLOATS * shapes[group.linears[0]][1] ** 2 for group in found if group.routed or group.shared)

    if method.transform:  # a search has those of the whole block
        return size(linear_groups(config, layer))
    if not method.needs_text:
        return 0
    stages = [stage for part in parts_of(config, layer) for stage in part.operation.stages(config, layer, part.before)]
    return min(max(map(size, stages)), MOST_GRAMS)


def _block_bytes(config: ModelConfig, layer: int, method: Method, effort: str, every: bool) -> int:
    """Bytes of a block's weights, and of what is alive beside them when most is: see `InputHessian`."""
    shapes = linear_shapes(config, layer)
    block = _FLOATS * sum(rows * cols for rows, cols in shapes.values())
    grams = _gram_bytes(config, layer, method, every)
    if not method.needs_text:
        return 2 * block + grams
    follows, most = method.row.follows_original(EFFORTS[effort]), 0
    for part in parts_of(config, layer):
        rounded = 0  # bytes of the part's linears that are rounded already
        for stage in part.operation.stages(config, layer, part.before):
            for group in stage:
                rows, cols = [shapes[name][0] for name in group.linears], shapes[group.linears[0]][1]
                most = max(most, _input_bytes(cols, rows, follows=follows, rounded=rounded))
            rounded += _FLOATS * sum(math.prod(shapes[name]) for group in stage for name in group.linears)
    twice = method.transform or method.row.tuner is not None
    return block + max(most, block if twice else 0) + (block if method.transform else 0) + grams


def _input_bytes(cols: int, rows: list[int], *, follows: bool, rounded: int) -> int:
    """Bytes for the linears of an input, when its sums are taken, its Hessian is factored, or the linears are rounded.

    rows: of each linear. rounded: bytes that are there when the sums are taken
    """
    square, largest = _FLOATS * cols * cols, _FLOATS * cols * max(rows)
    slab = _SLABS * _FLOATS * cols * min(slab_rows(cols), max(rows))
    if not follows:
        return max(square + rounded, 2 * square + slab)
    if cols >= WIDE and max(rows) <= cols:
        return max(2 * square + rounded, 2 * square + _FLOATS * cols * sum(rows) + slab)
    return max(2 * square + rounded, 4 * square + largest + slab)


def _kept_inputs(config: ModelConfig, method: Method, effort: str, tokens: int, memory: int | None) -> int:
    """Bytes of the inputs of a part's last linear that are kept in memory. See `bitsmith.calibration.last_inputs`."""
    buffers = 1 + method.row.follows_original(EFFORTS[effort])
    room = available_memory() if memory is None else 2 * memory
    own = _FLOATS * tokens * config.hidden
    share = None if room is None else room // 2 // method.hidden_state_buffers(effort) - own
    most = 0
    for layer in range(config.layers):
        shapes = linear_shapes(config, layer)
        for part in parts_of(config, layer):
            size = _FLOATS * tokens * shapes[part.operation.last][1] if part.operation.last else 0
            most = max(most, size if share is None or size <= share else 0)
    return buffers * most


def _hidden_states(
    config: ModelConfig, method: Method, effort: str, tokens: int, memory: int | None
) -> tuple[int, int]:
    """Bytes of hidden states in memory and on disk. See `bitsmith.calibration.hidden`."""
    buffers = method.hidden_state_buffers(effort) if method.needs_text else 1
    kept = sum(2 * config.specs[layer].kv_heads * config.specs[layer].head_dim for layer in config.kept_layers)
    size = _FLOATS * tokens * (config.hidden + kept)
    room = available_memory() if memory is None else 2 * memory
    return (0, buffers * size) if room is not None and size > room // 2 // buffers else (buffers * size, 0)


def _rounded_products_per_second() -> float | None:
    """Speed of the C++ core's bfloat16 products on this machine; None where it has none."""
    module = core()
    if module is None or not hasattr(module, "add_grams") or module.isa() not in ("avx512bf16", "amx"):
        return None
    x, gram, least = np.ones((512, _PROBE), np.float32), np.zeros((_PROBE, _PROBE), np.float32), float("inf")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for used in (1,) * 4 + (threads,) * 4:  # where others work too, all threads together may be slower than one
        started = time.perf_counter()
        module.add_grams(x, gram, rounded=True, threads=used)
        least = min(least, time.perf_counter() - started)
    return len(x) * _PROBE * (_PROBE + 1) / 2 / least


def products_per_second() -> float:
    """Speed of float32 matrix products on this machine."""
    a, least = np.ones((_PROBE, _PROBE), np.float32), float("inf")
    for _ in range(4):  # the first wakes the threads
        started = time.perf_counter()
        a @ a
        least = min(least, time.perf_counter() - started)
    return _PROBE**3 / least

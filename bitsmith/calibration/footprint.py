"""Memory that the calibration of one output takes at most, beside what the process holds before it.

It adds up what is alive together; freed memory below 32 MB stays with the process (`hold_memory`), so that phases add
up too. The constants were fitted to peaks of real runs; bench/preflight.py checks them (docs/LOG.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsmith.calibration.cost import calibration_memory, training_memory
from bitsmith.calibration.method import Method
from bitsmith.calibration.pieces import BATCH_TOKENS
from bitsmith.models.arch.block import linear_shapes
from bitsmith.models.arch.config import ModelConfig
from bitsmith.quant.formats.base import Format, VectorFormat
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.system.memory import available_memory

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd

TORCH = 190_000_000  # bytes that importing torch takes
WARM = 45_000_000  # kernels that torch compiles for the shapes of a model, and modules of calibration
ADDRESSES = 480_000_000  # addresses that torch takes beside its memory
_FLOATS = 4  # bytes
_TUNED = 40  # bytes a weight that learns: itself, offset, gradient, two moments, its place on the grid, decoded value
LOGITS = 1 << 22  # logits that a training of the whole model computes at once, but those of a window at least
_COPIES = 6  # of them: these, logarithms, probabilities, and the gradients of each
_DECODED = 4 + 2  # bytes of a decoded weight in float32, and as it is multiplied
_VECTORS = 64_000_000  # bytes of the search in code books


@dataclass(frozen=True)
class Run:
    """What is run.

    formats: of the rounded tensors
    memory: bytes that hidden states may take in memory; None: half of what is free
    training: of the whole model after its blocks; None: none
    """

    config: ModelConfig
    method: Method
    effort: str
    record: CalibrationRecord
    formats: tuple[Format, ...] = ()
    memory: int | None = None
    training: EndToEnd | None = None


def torch_memory() -> int:
    """Bytes that torch takes when it is first used in this process."""
    return WARM if "torch" in sys.modules else TORCH + WARM


def calibration_footprint(run: Run) -> tuple[int, int]:
    """Bytes of memory beside torch itself, and bytes of temporary files on disk."""
    config, row = run.config, run.method.row
    needed, disk = calibration_memory(config, run.method, run.effort, run.record, memory=run.memory)
    follows = run.method.needs_text and row.follows_original(EFFORTS[run.effort])
    most = BATCH_TOKENS // run.record.context * run.record.context or run.record.context
    needed += _FLOATS * min(most, run.record.tokens) * _batch_numbers(config, follows=follows)
    if run.method.needs_text and any(isinstance(each, VectorFormat) for each in run.formats):
        needed += _VECTORS
    if row.tuner is not None:
        needed += _tuning(run, EFFORTS[run.effort].batch)
    if run.training is not None:
        trained = training_memory(config, run.training, memory=run.memory)
        trained += _tuning(run, run.training.batch, whole=True)
        needed = max(needed, trained + _kept_blocks(run, trained))
    return needed, disk


def _batch_numbers(config: ModelConfig, *, follows: bool) -> int:
    """Numbers that a token takes while a part of a block is computed, float32.

    Attention: input, norm, output; q, k and v, rotated, and what attention gives. MLP: input, norm, output; gate, up,
    their product, and copies in bfloat16.
    follows: whether the original runs beside the rounded block
    """
    most = 0
    for kind, layer in {config.specs[layer]: layer for layer in range(config.layers)}.items():
        q, kv = config.heads * kind.head_dim, kind.kv_heads * kind.head_dim
        attention = 3 * config.hidden + (3 + follows) * q + 3 * kv
        most = max(most, attention, 3 * config.hidden + (4 + follows) * _inner(config, layer))
    return most


def _inner(config: ModelConfig, layer: int) -> int:
    """Numbers of a token between the two products of an MLP; of all experts that it passes."""
    used = 1 if config.experts is None else config.experts.used
    shapes = linear_shapes(config, layer).items()
    return max(
        (cols * (used if "_exps." in name else 1) for name, (_, cols) in shapes if "_down" in name),
        default=config.hidden,
    )


def _tuning(run: Run, windows: int, *, whole: bool = False) -> int:
    """Bytes of training on so many windows at once: what a block keeps for the backward pass, and its weights.

    whole: whether the whole model is trained; only one block at a time keeps what its backward pass needs
    """
    config = run.config
    tokens = min(windows * run.record.context, run.record.tokens)
    numbers = max(_kept_numbers(config, layer) for layer in range(config.layers))
    weights = max(_weights(config, layer) for layer in range(config.layers))
    kept = _FLOATS * tokens * numbers + _TUNED * weights
    if not whole:
        return kept
    logits = min(tokens, max(run.record.context, LOGITS // config.vocab)) * config.vocab
    return kept + _FLOATS * (_COPIES * logits + tokens * config.layers * config.hidden)


def _kept_blocks(run: Run, trained: int) -> int:
    """Bytes that blocks keep in a training beside the first: at most a third of what is free, see `kept_blocks`.

    trained: bytes that the training takes without them
    """
    config, training = run.config, run.training
    assert training is not None
    free = available_memory() or 0
    room = (max(0, free - trained) if run.memory is None else min(free, run.memory)) // 3
    tokens = min(training.batch * run.record.context, training.tokens or run.record.tokens)
    each = max(
        _FLOATS * tokens * _kept_numbers(config, layer) + _DECODED * _weights(config, layer)
        for layer in range(config.layers)
    )
    return min((config.layers - 1) * each, room)


def _kept_numbers(config: ModelConfig, layer: int) -> int:
    """Numbers of a token that a block keeps for its backward pass."""
    kind = config.specs[0]
    return 8 * config.hidden + 4 * (config.heads + kind.kv_heads) * kind.head_dim + 5 * _inner(config, layer)


def _weights(config: ModelConfig, layer: int) -> int:
    return sum(rows * cols for rows, cols in linear_shapes(config, layer).values())


def largest(runs: Iterable[Run]) -> tuple[int, int]:
    """Memory and disk of runs one after the other."""
    found = [calibration_footprint(run) for run in runs]
    return max((memory for memory, _ in found), default=0), max((disk for _, disk in found), default=0)

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

if TYPE_CHECKING:
    from bitsmith.calibration.end_to_end import EndToEnd

TORCH = 190_000_000  # bytes that importing torch takes
WARM = 45_000_000  # kernels that torch compiles for the shapes of a model, and modules of calibration
ADDRESSES = 480_000_000  # addresses that torch takes beside its memory
_FLOATS = 4  # bytes
_TUNED = 40  # bytes a weight that learns: itself, offset, gradient, two moments, its place on the grid, decoded value
_LOGITS = 6  # copies of the logits of a batch in training: these, logarithms, probabilities, and the gradients of each
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
        needed = max(
            needed,
            training_memory(config, run.training, memory=run.memory) + _tuning(run, run.training.batch, whole=True),
        )
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
    kind = config.specs[0]
    wide = (config.heads + kind.kv_heads) * kind.head_dim
    numbers = max(8 * config.hidden + 4 * wide + 5 * _inner(config, layer) for layer in range(config.layers))
    weights = max(_weights(config, layer) for layer in range(config.layers))
    kept = _FLOATS * tokens * numbers + _TUNED * weights
    if not whole:
        return kept
    return kept + _FLOATS * tokens * (_LOGITS * config.vocab + config.layers * config.hidden)


def _weights(config: ModelConfig, layer: int) -> int:
    return sum(rows * cols for rows, cols in linear_shapes(config, layer).values())


def largest(runs: Iterable[Run]) -> tuple[int, int]:
    """Memory and disk of runs one after the other."""
    found = [calibration_footprint(run) for run in runs]
    return max((memory for memory, _ in found), default=0), max((disk for _, disk in found), default=0)

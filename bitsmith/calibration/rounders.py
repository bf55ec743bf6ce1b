"""Rounders by name: one visible table. A rounder chooses the code of each weight.

A new rounder is one file with a function that gives a `LinearRounder`, and one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsmith.quant.rounders.effort import EFFORTS, Effort

if TYPE_CHECKING:
    from bitsmith.calibration.drift import Drift
    from bitsmith.calibration.learned import BlockTuner
    from bitsmith.calibration.pieces import Pieces
    from bitsmith.calibration.rounding import LinearRounder
    from bitsmith.calibration.stats import Stats
    from bitsmith.runtime.decoder import Decoder
    from bitsmith.runtime.weights import Block


@dataclass(frozen=True)
class Rounder:
    """One row of the table.

    name: as in --method
    linear: (stats of a group's input, drift, effort) -> the rounder of that group's matrices. drift: how
        far that input has moved from the original model's; None if `follows_original` is False
    tuner: (decoder, layer, block, effort, seed, pieces of steps) -> the tuner of a block's codes, after `linear` chose
        them; None for no tuning
    needs_text: whether the model must run on calibration text even without a transform
    heeds_effort: whether the effort changes the codes
    follows_original: effort -> whether to keep the original model's hidden states beside those of the rounded blocks
    by_column: whether the time grows with the square of the number of columns
    """

    name: str
    linear: Callable[[Stats, Drift | None, Effort], LinearRounder]
    tuner: Callable[[Decoder, int, Block, Effort, int, Pieces], BlockTuner] | None = None
    needs_text: bool = True
    heeds_effort: bool = True
    follows_original: Callable[[Effort], bool] = lambda effort: False
    by_column: bool = True

    def hidden_state_buffers(self, effort: str) -> int:
        """Number of hidden-state buffers this rounder needs, each float32 [windows, context, hidden]."""
        return 1 + self.follows_original(EFFORTS[effort]) + (self.tuner is not None)


def _nearest(stats: Stats, drift: Drift | None, effort: Effort) -> LinearRounder:
    from bitsmith.calibration.rounding import clipped_nearest

    return clipped_nearest(stats)


def _gptq(stats: Stats, drift: Drift | None, effort: Effort) -> LinearRounder:
    from bitsmith.calibration.rounding import gptq_rounder

    return gptq_rounder(stats, drift if effort.corrects else None, effort)


def _learned(decoder: Decoder, layer: int, block: Block, effort: Effort, seed: int, pieces: Pieces) -> BlockTuner:
    from bitsmith.calibration.learned import BlockTuner

    return BlockTuner(decoder, layer, block, effort, seed, pieces)


ROUNDERS: dict[str, Rounder] = {
    row.name: row
    for row in (
        Rounder("nearest", _nearest, needs_text=False, heeds_effort=False, by_column=False),
        Rounder("gptq", _gptq, follows_original=lambda effort: effort.corrects),
        Rounder("learned", _gptq, tuner=_learned, follows_original=lambda effort: True),
    )
}

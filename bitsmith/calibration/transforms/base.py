"""What a transform is: it chooses one factor per column for linears that share an input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from bitsmith.calibration.stats import Stats
from bitsmith.calibration.transforms.fold import fold, producer_rows, refusal
from bitsmith.errors import UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.arch.groups import LinearGroup
from bitsmith.quant.formats.base import Format
from bitsmith.recipe.coverage import STARVED

_P = TypeVar("_P")
_SMALLEST, _LARGEST = 2.0**-10, 2.0**10  # limits of a factor; norms and biases stay well inside float16


@dataclass(frozen=True)
class Rescaling:
    """The factors found for one group of linears.

    scale: [cols] float32, > 0. Columns are multiplied by it, and the producer's rows divided by it; all ones if no
        factors help
    loss_before, loss_after: the loss that the transform minimises, without and with the factors; 0.0 if not computed
    reason: how the factors were found, or why there are none
    """

    group: LinearGroup
    scale: np.ndarray
    loss_before: float
    loss_after: float
    reason: str

    @property
    def changes(self) -> bool:
        """Whether any factor differs from 1."""
        return bool((self.scale != 1.0).any())

    @classmethod
    def none(cls, group: LinearGroup, cols: int, reason: str, loss: float = 0.0) -> Rescaling:
        """A rescaling that changes nothing, for an input of `cols` features, with its reason."""
        return cls(group, np.ones(cols, np.float32), loss, loss, reason)


class Transform(Protocol):
    """A frozen value object that chooses factors.

    needs: the statistics it reads in addition to means and maxima: "gram", "sample"
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(
        self,
        group: LinearGroup,
        weights: Mapping[str, np.ndarray],
        formats: Mapping[str, Format],
        stats: Stats,
        rows: np.ndarray,
    ) -> Rescaling:
        """Choose factors for one group.

        weights: float32 [rows, cols] by linear name, without linears that stay in 16 bits
        formats: the format of each of these linears
        stats: statistics of the group's input
        rows: [cols] int64, the producer row that feeds each column; columns of one row get one factor
        Raises UsageError if the statistics lack something that `needs` names.
        """
        ...


def rescale_block(
    transform: Transform,
    config: ModelConfig,
    groups: Sequence[LinearGroup],
    tensors: Mapping[str, np.ndarray],
    formats: Mapping[str, Format],
    stats: Mapping[str, Stats],
) -> tuple[dict[str, np.ndarray], tuple[Rescaling, ...]]:
    """Rescale all groups of a block in turn. If a group cannot be rescaled, its Rescaling gives the reason.

    tensors: float32 by name within the block ("attn_q.weight", "attn_norm.weight", "attn_v.bias"); not changed
    formats: by linear name, without linears that stay in 16 bits
    stats: by group name, from the block before rescaling
    Returns all tensors of the block with factors folded in, and one Rescaling per group.
    """
    folded = dict(tensors)
    found = []
    for group in groups:
        cols = folded[f"{group.linears[0]}.weight"].shape[1]
        weights = {name: folded[f"{name}.weight"] for name in group.linears if name in formats}
        reason = "its linears stay in 16 bits" if not weights else refusal(group, config, folded)
        if reason is None and group.routed and stats[group.name].count < STARVED:
            reason = f"its expert saw fewer than {STARVED} tokens"
        if reason is not None:
            found.append(Rescaling.none(group, cols, reason))
            continue
        rescaling = transform(group, weights, formats, stats[group.name], producer_rows(group, config, cols))
        if rescaling.changes:
            folded.update(fold(group, rescaling.scale, folded, config))
        found.append(rescaling)
    return folded, tuple(found)


def settled(scale: np.ndarray, live: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Make factors usable: geometric mean 1 over live columns, 1 for dead columns, equal within a producer row.

    scale: [cols] float64, > 0 where live; live: [cols] bool; rows: as in `Transform`. Returns [cols] float32.
    """
    logarithm = np.where(live, np.log(np.where(live, scale, 1.0)), 0.0)
    count = np.bincount(rows, weights=live.astype(np.float64))
    total = np.bincount(rows, weights=logarithm)
    tied = (total / np.maximum(count, 1.0))[rows]
    some = count[rows] > 0
    tied = np.where(some, tied - (tied[some].mean() if some.any() else 0.0), 0.0)
    return np.clip(np.exp(tied), _SMALLEST, _LARGEST).astype(np.float32)


def lowest(
    loss: Callable[[_P, float], float],
    least: float,
    coarse: Callable[[], Iterable[_P]],
    beside: Callable[[_P | None], Iterable[_P]],
) -> tuple[_P, float] | None:
    """The place with the least loss, and that loss: among coarse places, then those beside the best of them.

    loss: gets a place and the least loss so far; if its own is above that, it may give any number above
    beside: the places beside the best one, or beside no rescaling, if no coarse place is better
    least: the loss that must be fallen below; the result is None where no place does
    """
    found: tuple[_P, float] | None = None
    for near in (False, True):
        for place in tuple(beside(found[0] if found else None)) if near else coarse():
            now = loss(place, least)
            if now < least:
                found, least = (place, now), now
    return found


def require(array: np.ndarray | None, what: str, group: LinearGroup) -> np.ndarray:
    """Return `array`. Raises UsageError if it is None or empty."""
    if array is None or array.size == 0:
        raise UsageError(f"{group.name}: the calibration statistics lack {what}; collect them again with {what}.")
    return array

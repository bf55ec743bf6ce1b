"""The best types for a number of bytes, from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bitsmith.recipe.allocation.solver import Time, solve
from bitsmith.recipe.allocation.units import Unit

_STEP = 2**0.25  # ratio of neighbouring anchors


def smallest(units: Sequence[Unit]) -> int:
    """Bytes of all units in their smallest types."""
    return sum(unit.choices[0].nbytes for unit in units)


def largest(units: Sequence[Unit]) -> int:
    """Bytes of all units in their largest types."""
    return sum(unit.choices[-1].nbytes for unit in units)


def sizes_of(units: Sequence[Unit]) -> list[np.ndarray]:
    """Bytes of each choice: int64 [choices] of each unit."""
    return [np.array([choice.nbytes for choice in unit.choices], np.int64) for unit in units]


def best(units: Sequence[Unit], costs: Sequence[np.ndarray], budget: int, time: Time | None = None) -> list[int]:
    """The choice of each unit that costs least within `budget` bytes, and `time`. Raises as `solve`."""
    return solve(costs, sizes_of(units), budget, time)


def anchor(units: Sequence[Unit], budget: int) -> int:
    """The bytes, of a fixed scale, whose best types are measured around; the nearest to `budget`."""
    low, high = smallest(units), largest(units)
    if low >= high:
        return low
    steps = round(math.log(max(budget, low) / low) / math.log(_STEP))
    return min(round(low * _STEP**steps), high)

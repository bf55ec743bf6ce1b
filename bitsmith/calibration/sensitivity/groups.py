"""Which units are checked together against true divergences, and in which types."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from bitsmith.recipe.allocation.units import Unit

_ALONE = 8  # units at most that are checked alone
_MUCH = 1 / 16  # of the cost of all units: what such a unit costs at least
_NUMBER = re.compile(r"\d+")


def types_of_size(units: Sequence[Unit], costs: Sequence[np.ndarray], nbytes: int) -> list[int]:
    """The choice of each unit whose bits a weight are nearest to those of all units with a choice in `nbytes` bytes.

    One that costs something, if there is such a choice.
    """
    weights = [sum(tensor.info.parameters for tensor in unit.choices[0].tensors) for unit in units]
    open_ = sum(weight for unit, weight in zip(units, weights, strict=True) if len(unit.choices) > 1)
    wanted = max(nbytes, 1) / max(open_, 1)
    found = []
    for unit, own, weight in zip(units, costs, weights, strict=True):
        far = np.array([abs(np.log(choice.nbytes / weight / wanted)) for choice in unit.choices])
        far[own <= 0] = np.inf
        found.append(int(far.argmin()))
    return found


def groups(units: Sequence[Unit], costs: Sequence[float]) -> list[list[int]]:
    """Numbers of units: those that cost much alone, and the others by kind, over all layers. Units of no cost in none.

    costs: of each unit in the type that is checked
    """
    total = sum(costs)
    by_cost = sorted(range(len(units)), key=lambda at: -costs[at])
    alone = [at for at in by_cost[:_ALONE] if costs[at] > _MUCH * total]
    kinds: dict[str, list[int]] = {}
    for at, unit in enumerate(units):
        if costs[at] > 0 and at not in alone:
            kinds.setdefault(_NUMBER.sub("#", unit.names[0]), []).append(at)
    return [*([at] for at in alone), *kinds.values()]

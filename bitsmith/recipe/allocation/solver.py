"""The exact choice of one type for each unit: a multiple-choice knapsack, solved as an integer program by HiGHS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bitsmith.errors import UsageError

_GAP = 1e-5  # relative distance from the proven optimum at which the solver may stop
_SECONDS = 60.0
_TASK = Path(__file__).with_name("highs_task.py")


def solve(costs: Sequence[np.ndarray], sizes: Sequence[np.ndarray], budget: int) -> list[int]:
    """The number of the choice of each unit. The sum of costs is least, and the sum of sizes at most `budget`.

    costs: float64 [choices] of each unit, in any measure; sizes: int64 [choices], bytes
    Raises UsageError if highspy is not installed; ValueError if even the smallest choices take more than the budget.
    """
    if sum(int(each.min()) for each in sizes) > budget:
        raise ValueError("the smallest choices take more than the budget")
    useful = [_undominated(cost, size) for cost, size in zip(costs, sizes, strict=True)]
    counts = [len(each) for each in useful]
    objective = np.concatenate([cost[each] - cost[each].min() for cost, each in zip(costs, useful, strict=True)])
    weight = np.concatenate([size[each] for size, each in zip(sizes, useful, strict=True)])
    places = np.split(_integers(objective, weight, counts, budget), np.cumsum(counts)[:-1])
    chosen = [int(each[np.argmax(values)]) for each, values in zip(useful, places, strict=True)]
    return _within(chosen, costs, sizes, budget)


def _integers(objective: np.ndarray, weight: np.ndarray, counts: Sequence[int], budget: int) -> list[float]:
    """HiGHS's solution: [choices], 1 at the choice of each unit.

    objective, weight: costs and bytes of the choices, unit after unit
    HiGHS runs in a process of its own, since it prints a banner, whatever its options say.
    """
    if find_spec("highspy") is None:
        raise UsageError("choosing types for a budget needs HiGHS: pip install 'bitsmith[fit]'.")
    scale = max(float(objective.max()), 1e-300)
    unit = int(np.gcd.reduce(weight))  # whole and small coefficients keep the solver within its tolerances
    request = {
        "costs": (objective / scale).tolist(),
        "sizes": (weight // unit).tolist(),
        "counts": list(counts),
        "budget": budget // unit,
        "options": {"mip_rel_gap": _GAP, "time_limit": _SECONDS},
    }
    done = subprocess.run(
        [sys.executable, "-P", str(_TASK)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
    )
    answer = done.stdout.strip().rpartition("\n")[2]
    try:
        return list(json.loads(answer)["choices"])
    except (ValueError, KeyError, TypeError) as error:
        said = (done.stderr.strip() or answer or f"it ended with code {done.returncode}").splitlines()[-1]
        raise UsageError(
            f"HiGHS found no choice of types: {said:.200}; install it again: pip install highspy."
        ) from error


def _undominated(cost: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The numbers of the choices that cost less than every smaller one, int64."""
    order = np.lexsort((cost, size))
    least = np.minimum.accumulate(np.concatenate([[np.inf], cost[order][:-1]]))
    return np.asarray(order[cost[order] < least])


def _within(chosen: list[int], costs: Sequence[np.ndarray], sizes: Sequence[np.ndarray], budget: int) -> list[int]:
    """The choice, made to fit exactly where the solver's tolerance let a few bytes too many pass."""
    over = sum(int(size[at]) for size, at in zip(sizes, chosen, strict=True)) - budget
    while over > 0:
        steps = [
            ((cost[to] - cost[at]) / (size[at] - size[to]), unit, to)
            for unit, (cost, size, at) in enumerate(zip(costs, sizes, chosen, strict=True))
            for to in range(len(cost))
            if size[to] < size[at]
        ]
        _, unit, to = min(steps)
        over -= int(sizes[unit][chosen[unit]] - sizes[unit][to])
        chosen[unit] = to
    return chosen

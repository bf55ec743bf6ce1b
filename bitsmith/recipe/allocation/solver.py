"""The exact choice of one type for each unit: a multiple-choice knapsack, solved as an integer program by HiGHS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bitsmith.errors import UsageError

_GAP = 1e-5  # relative distance from the proven optimum at which the solver may stop
_SECONDS = 60.0
_TASK = Path(__file__).with_name("highs_task.py")


@dataclass(frozen=True)
class Time:
    """A second limit. seconds: of each choice of each unit, float64 [choices]; limit: of their sum"""

    seconds: Sequence[np.ndarray]
    limit: float


def solve(costs: Sequence[np.ndarray], sizes: Sequence[np.ndarray], budget: int, time: Time | None = None) -> list[int]:
    """The number of the choice of each unit. The sum of costs is least, and the sum of sizes at most `budget`.

    costs: float64 [choices] of each unit, in any measure; sizes: int64 [choices], bytes
    time: what choices take besides; the sum of it keeps its limit, too. None: nothing
    Raises UsageError if highspy is not installed, or if it finds no choice in the time that it has; ValueError if even
    the smallest choices take more than the budget, or if no choice keeps both limits.
    """
    if sum(int(each.min()) for each in sizes) > budget:
        raise ValueError("the smallest choices take more than the budget")
    seconds = [np.zeros(len(cost)) for cost in costs] if time is None else time.seconds
    useful = [_undominated(*each) for each in zip(costs, sizes, seconds, strict=True)]
    counts = [len(each) for each in useful]
    objective = np.concatenate([cost[each] - cost[each].min() for cost, each in zip(costs, useful, strict=True)])
    weight = np.concatenate([size[each] for size, each in zip(sizes, useful, strict=True)])
    further = None
    if time is not None:
        if time.limit <= 0:
            raise ValueError("no time is left")
        further = np.concatenate([own[each] for own, each in zip(seconds, useful, strict=True)]) / time.limit
    places = np.split(_integers(objective, weight, counts, budget, further), np.cumsum(counts)[:-1])
    chosen = [int(each[np.argmax(values)]) for each, values in zip(useful, places, strict=True)]
    return chosen if time is not None else _within(chosen, costs, sizes, budget)


def _integers(
    objective: np.ndarray, weight: np.ndarray, counts: Sequence[int], budget: int, shares: np.ndarray | None
) -> list[float]:
    """HiGHS's solution: [choices], 1 at the choice of each unit.

    objective, weight: costs and bytes of the choices, unit after unit
    shares: of a second limit that they take, whose sum is at most 1; None: there is none
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
        "shares": None if shares is None else shares.tolist(),
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
    try:
        answer = dict(json.loads(done.stdout.strip().rpartition("\n")[2]))
    except (ValueError, TypeError) as error:
        said = (done.stderr.strip() or done.stdout.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise UsageError(
            f"HiGHS found no choice of types: {said:.200}; install it again: pip install highspy."
        ) from error
    if "impossible" in answer:
        raise ValueError("no choice keeps both limits")
    if "choices" not in answer:
        raise UsageError(
            f"HiGHS found no choice of types within {_SECONDS:g} s ({answer.get('stopped')}); "
            "give a slightly different budget."
        )
    return list(answer["choices"])


def _undominated(cost: np.ndarray, size: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The numbers of the choices that are better in something than every other one, int64, the smallest first."""
    found: list[int] = []
    for at in np.lexsort((seconds, cost, size)):
        if not any(cost[each] <= cost[at] and seconds[each] <= seconds[at] for each in found):
            found.append(int(at))
    return np.array(found, np.int64)


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

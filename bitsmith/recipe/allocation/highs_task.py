"""The program that solves with HiGHS: a JSON object on standard input, another as the last line of standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def main() -> None:
    """Read a problem, solve it, print the answer of `solved`."""
    print(f"\n{json.dumps(solved(json.load(sys.stdin)))}")


def solved(problem: dict[str, Any]) -> dict[str, Any]:
    """The least sum of costs, with a sum of sizes of at most the budget.

    The answer has "choices", 1 at the choice of each unit; or, where HiGHS found none, "impossible" (no choice keeps
    the limits) or "stopped" (it ended before it found one), with what it says.

    problem: "costs" and "sizes" of all choices, unit after unit; "counts", the number of choices of each unit;
        "budget"; "shares" of a second limit, whose sum is at most 1, or None; "options" of HiGHS
    """
    import highspy

    counts, total = problem["counts"], len(problem["costs"])
    units = len(counts)
    limits = [(problem["sizes"], float(problem["budget"]))]
    if problem["shares"] is not None:
        limits.append((problem["shares"], 1.0))
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = total, units + len(limits)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.array(problem["costs"]), np.zeros(total), np.ones(total)
    lp.row_lower_ = np.array([1.0] * units + [-highspy.kHighsInf] * len(limits))
    lp.row_upper_ = np.array([1.0] * units + [limit for _, limit in limits])
    lp.integrality_ = [highspy.HighsVarType.kInteger] * total
    of_unit = np.repeat(np.arange(units, dtype=np.int32), counts)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    step = 1 + len(limits)
    lp.a_matrix_.start_ = np.arange(0, step * total + 1, step, dtype=np.int32)
    rows = [np.full(total, units + at, np.int32) for at in range(len(limits))]
    lp.a_matrix_.index_ = np.stack([of_unit, *rows], axis=1).reshape(-1)
    values = [np.array(each, float) for each, _ in limits]
    lp.a_matrix_.value_ = np.stack([np.ones(total), *values], axis=1).reshape(-1)
    solver = highspy.Highs()
    for option, value in problem["options"].items():
        solver.setOptionValue(option, value)
    solver.passModel(lp)
    solver.run()
    status = solver.getModelStatus()
    said = solver.modelStatusToString(status)
    impossible = (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)
    if status in impossible:  # all columns have bounds, so that no sum is unbounded
        return {"impossible": said}
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return {"stopped": said}
    return {"choices": [float(value) for value in solver.getSolution().col_value]}


if __name__ == "__main__":
    main()

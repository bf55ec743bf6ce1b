"""The program that solves with HiGHS: a JSON object on standard input, another as the last line of standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def main() -> None:
    """Read a problem, solve it, print the choices."""
    print(f"\n{json.dumps({'choices': solved(json.load(sys.stdin))})}")


def solved(problem: dict[str, Any]) -> list[float]:
    """1 at the choice of each unit: the least sum of costs, with a sum of sizes of at most the budget.

    problem: "costs" and "sizes" of all choices, unit after unit; "counts", the number of choices of each unit;
        "budget"; "options" of HiGHS
    """
    import highspy

    counts, total = problem["counts"], len(problem["costs"])
    units = len(counts)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = total, units + 1
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.array(problem["costs"]), np.zeros(total), np.ones(total)
    lp.row_lower_ = np.array([1.0] * units + [-highspy.kHighsInf])
    lp.row_upper_ = np.array([1.0] * units + [float(problem["budget"])])
    lp.integrality_ = [highspy.HighsVarType.kInteger] * total
    of_unit = np.repeat(np.arange(units, dtype=np.int32), counts)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.arange(0, 2 * total + 1, 2, dtype=np.int32)
    lp.a_matrix_.index_ = np.stack([of_unit, np.full(total, units, np.int32)], axis=1).reshape(-1)
    lp.a_matrix_.value_ = np.stack([np.ones(total), np.array(problem["sizes"], float)], axis=1).reshape(-1)
    solver = highspy.Highs()
    for option, value in problem["options"].items():
        solver.setOptionValue(option, value)
    solver.passModel(lp)
    solver.run()
    found = [float(value) for value in solver.getSolution().col_value]
    if len(found) != total:
        raise ValueError(solver.modelStatusToString(solver.getModelStatus()))
    return found


if __name__ == "__main__":
    main()

"""How many questions of a task a model answers rightly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.comparison.statistics import wilson


@dataclass(frozen=True)
class TaskScore:
    """How well a model does on one task.

    value: share of right answers, or lm-eval's metric
    low, high: the interval of 95 %: Wilson's, or by lm-eval's standard error
    count: number of questions
    lost, won: questions that the original answers rightly and the model wrongly, and the other way round; None where
        lm-eval does not tell
    """

    name: str
    value: float
    low: float
    high: float
    count: int
    lost: int | None = None
    won: int | None = None


def task_score(name: str, right: np.ndarray, original: np.ndarray) -> TaskScore:
    """right, original: bool [items], of the model and of the original"""
    hits, count = int(right.sum()), len(right)
    lost, won = int((original & ~right).sum()), int((right & ~original).sum())
    return TaskScore(name, hits / count, *wilson(hits, count), count, lost, won)

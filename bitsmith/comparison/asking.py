"""Asks every model the same questions and prompts; asks the ledger first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.comparison.candidates import Candidate
from bitsmith.comparison.generations import written
from bitsmith.comparison.ledger import What
from bitsmith.comparison.loading import kernel_of
from bitsmith.comparison.scoring import Tools
from bitsmith.comparison.tasks.answering import right_answers
from bitsmith.comparison.tasks.items import Task
from bitsmith.comparison.tasks.scores import TaskScore
from bitsmith.system.progress import Progress

if TYPE_CHECKING:
    from bitsmith.runtime.language_model import LanguageModel


@dataclass(frozen=True)
class Answers:
    """What a model answers.

    right: bool [items] for each task
    harness: scores of lm-eval's tasks
    texts: what it writes after each prompt
    """

    right: tuple[np.ndarray, ...]
    harness: tuple[TaskScore, ...]
    texts: tuple[str, ...]


class Asking:
    """Questions and prompts for all models.

    others: names of lm-eval's tasks
    prompts: texts to continue with `config.generate` tokens
    """

    def __init__(self, tasks: Sequence[Task], others: Sequence[str], prompts: Sequence[str], tools: Tools) -> None:
        self._tasks, self._others, self._prompts, self._tools = tasks, others, prompts, tools

    def answers(self, candidate: Candidate) -> Answers:
        """Everything of one model. Raises BitsmithError if it cannot be run."""
        return Answers(
            tuple(self._right(candidate, task) for task in self._tasks),
            tuple(score for name in self._others for score in self._harness(candidate, name)),
            self._texts(candidate),
        )

    def _right(self, candidate: Candidate, task: Task) -> np.ndarray:
        what = self._what("tasks", candidate, task.name, task.sha256, "answers-1")
        kept = self._tools.ledger.get(what)
        if kept is not None:
            return np.unpackbits(np.frombuffer(kept.data, np.uint8))[: len(task.items)].astype(bool)

        def done(rows: int, total: int) -> None:
            self._tools.report(Progress("tasks", rows, total, "questions", f"{candidate.name}, {task.name}"))

        right = right_answers(self._model(candidate), task, done)
        figures = {"accuracy": float(right.mean()), "questions": len(right)}
        self._tools.ledger.put(what, figures, np.packbits(right).tobytes())
        return right

    def _harness(self, candidate: Candidate, name: str) -> list[TaskScore]:
        from bitsmith.comparison.tasks.harness import harness_scores, harness_version

        limit, shots = self._tools.config.task_limit, self._tools.config.shots
        how = f"lm-eval {harness_version()} limit {limit}" + ("" if shots is None else f" shots {shots}")
        what = self._what("tasks", candidate, name, "", how)
        kept = self._tools.ledger.get(what)
        if kept is not None:
            return [TaskScore(**each) for each in kept.figures["scores"]]
        found = harness_scores(self._model(candidate), name, limit=limit, shots=shots)
        figures = {"scores": [vars(each) for each in found], "accuracy": found[0].value}
        self._tools.ledger.put(what, figures)
        return found

    def _texts(self, candidate: Candidate) -> tuple[str, ...]:
        tokens = self._tools.config.generate
        if not tokens or not self._prompts:
            return ()
        sha256 = hashlib.sha256(json.dumps(self._prompts).encode()).hexdigest()
        what = self._what("generations", candidate, "prompts", sha256, f"greedy-1 {tokens} tokens")
        kept = self._tools.ledger.get(what)
        if kept is not None:
            return tuple(json.loads(kept.data))
        texts = written(self._model(candidate), self._prompts, tokens)
        self._tools.ledger.put(what, {"prompts": len(texts)}, json.dumps(texts).encode())
        return tuple(texts)

    def _model(self, candidate: Candidate) -> LanguageModel:
        kernel = kernel_of(candidate.checkpoint, self._tools.config.kernel)
        return self._tools.model.get(candidate.checkpoint, kernel)

    def _what(self, kind: str, candidate: Candidate, text: str, sha256: str, definition: str) -> What:
        kernel = kernel_of(candidate.checkpoint, self._tools.config.kernel)
        return What(
            *(kind, candidate.name, self._tools.ledger.sha256(candidate.checkpoint.files)),
            text=text,
            text_sha256=sha256,
            definition=f"{definition} kernel {kernel}",
        )

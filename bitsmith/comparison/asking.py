"""Asks every model the same questions and prompts; asks the ledger first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.comparison.candidates import Candidate
from bitsmith.comparison.generations import written as continued
from bitsmith.comparison.ledger import What
from bitsmith.comparison.scoring import Tools
from bitsmith.comparison.tasks.answering import right_answers, tokens_of, written_steps
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


@dataclass(frozen=True)
class Todo:
    """What is still to be asked, of all models together.

    questions: number of them, without lm-eval's
    tokens: that are read for them, about
    answer_steps: steps of generation for answers
    texts: number of texts to write
    text_steps: steps of generation for them; all texts of a model are written together
    unknown: names of lm-eval's tasks
    """

    questions: int
    tokens: int
    answer_steps: int
    texts: int
    text_steps: int
    unknown: tuple[str, ...]


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

    def todo(self, models: Sequence[Candidate], missing: int) -> Todo:
        """What is left to do. models: the original and the candidates that are there; missing: number of the others"""
        questions = tokens = steps = texts = written = 0
        for task in self._tasks:
            count = missing + sum(self._tools.ledger.get(self._task(each, task)) is None for each in models)
            questions += count * len(task.items)
            tokens += count * tokens_of(models[0].tokenizer, task)
            steps += count * written_steps(task)
        if self._tools.config.generate and self._prompts:
            count = missing + sum(self._tools.ledger.get(self._writing(each)) is None for each in models)
            texts, written = count * len(self._prompts), count * self._tools.config.generate
        names = self._others
        unknown = [name for name in names if missing or any(self._scores(each, name) is None for each in models)]
        return Todo(questions, tokens, steps, texts, written, tuple(unknown))

    def _task(self, candidate: Candidate, task: Task) -> What:
        return self._what("tasks", candidate, task.name, task.sha256, "answers-1")

    def _right(self, candidate: Candidate, task: Task) -> np.ndarray:
        what = self._task(candidate, task)
        kept = self._tools.ledger.get(what)
        if kept is not None:
            return np.unpackbits(np.frombuffer(kept.data, np.uint8))[: len(task.items)].astype(bool)

        def done(rows: int, total: int) -> None:
            self._tools.report(Progress("tasks", rows, total, "choices", f"{candidate.name}, {task.name}"))

        right = right_answers(self._model(candidate), task, done)
        figures = {"accuracy": float(right.mean()), "questions": len(right)}
        self._tools.ledger.put(what, figures, np.packbits(right).tobytes())
        return right

    def _scores(self, candidate: Candidate, name: str) -> list[TaskScore] | None:
        kept = self._tools.ledger.get(self._harness_task(candidate, name))
        return None if kept is None else [TaskScore(**each) for each in kept.figures["scores"]]

    def _harness_task(self, candidate: Candidate, name: str) -> What:
        from bitsmith.comparison.tasks.harness import harness_version

        limit, shots = self._tools.config.task_limit, self._tools.config.shots
        how = f"lm-eval {harness_version()} limit {limit}" + ("" if shots is None else f" shots {shots}")
        return self._what("tasks", candidate, name, "", how)

    def _harness(self, candidate: Candidate, name: str) -> list[TaskScore]:
        from bitsmith.comparison.tasks.harness import harness_scores

        found = self._scores(candidate, name)
        if found is None:
            config = self._tools.config
            found = harness_scores(self._model(candidate), name, limit=config.task_limit, shots=config.shots)
            figures = {"scores": [vars(each) for each in found], "accuracy": found[0].value}
            self._tools.ledger.put(self._harness_task(candidate, name), figures)
        return found

    def _writing(self, candidate: Candidate) -> What:
        sha256 = hashlib.sha256(json.dumps(self._prompts).encode()).hexdigest()
        definition = f"greedy-1 {self._tools.config.generate} tokens"
        return self._what("generations", candidate, "prompts", sha256, definition)

    def _texts(self, candidate: Candidate) -> tuple[str, ...]:
        tokens = self._tools.config.generate
        if not tokens or not self._prompts:
            return ()
        what = self._writing(candidate)
        kept = self._tools.ledger.get(what)
        if kept is not None:
            return tuple(json.loads(kept.data))
        self._tools.report(Progress("write", 0, 1, "models", candidate.name))
        texts = continued(self._model(candidate), self._prompts, tokens)
        self._tools.ledger.put(what, {"prompts": len(texts)}, json.dumps(texts).encode())
        return tuple(texts)

    def _model(self, candidate: Candidate) -> LanguageModel:
        kernel = self._tools.kernel(candidate)
        return self._tools.model.get(candidate.checkpoint, kernel)

    def _what(self, kind: str, candidate: Candidate, text: str, sha256: str, definition: str) -> What:
        kernel = self._tools.kernel(candidate)
        return What(
            *(kind, candidate.name, self._tools.ledger.sha256(candidate.checkpoint.files)),
            text=text,
            text_sha256=sha256,
            definition=f"{definition} kernel {kernel}",
        )

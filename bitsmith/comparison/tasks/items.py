"""What a task consists of: questions with choices, and questions whose answer is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Choice:
    """A question with choices: the most probable continuation of `prompt` is the model's answer.

    continuations: as they follow the prompt, with the space before them
    answer: number of the right one
    """

    prompt: str
    continuations: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Written:
    """A question whose answer is the model's own text up to the end of the line."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """Questions of one kind. name: as the table has it"""

    name: str
    items: tuple[Choice | Written, ...]

    @property
    def sha256(self) -> str:
        """Hash of all questions."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps([type(item).__name__, *map(_plain, vars(item).values())]).encode() + b"\n")
        return digest.hexdigest()


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def lettered(question: str, choices: Sequence[str], answer: int) -> Choice:
    """A question in the prompt of lm-eval's `mmlu`: the answer is a letter."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    prompt = "\n".join([question.strip(), *lines, "Answer:"])
    return Choice(prompt, tuple(f" {letter}" for letter in LETTERS[: len(choices)]), answer)


def led(item: Choice, subject: str, examples: Sequence[Choice]) -> Choice:
    """A question behind its subject ("": none) and examples with their answers, as lm-eval's `mmlu` has it."""
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n" if subject else ""
    answered = (f"{each.prompt}{each.continuations[each.answer]}\n\n" for each in examples)
    return replace(item, prompt=f"{about}{''.join(answered)}{item.prompt}")

"""A conversation with a model through its chat template, kept inside the model's context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitsmith.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    from bitsmith.runtime.generate import Sampling
    from bitsmith.runtime.language_model import LanguageModel

_LEAST_ANSWER = 16  # tokens that an answer needs


class Conversation:
    """The messages so far. `say` adds the user's next message and streams the model's answer.

    When the prompt would leave no room for an answer, the oldest exchanges are dropped, never the system message;
    `take_notes` says how many.
    """

    def __init__(self, model: LanguageModel, *, system: str | None, max_tokens: int, sampling: Sampling) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        self._notes: list[str] = []

    def reset(self) -> None:
        """Forget everything except the system message."""
        self._turns = []

    def take_notes(self) -> list[str]:
        """Notes for the user since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def say(self, text: str) -> Generator[str]:
        """Add the user's message and stream the answer. Closing the stream early keeps what was said so far.

        Raises UsageError where the message alone does not fit the context.
        """
        self._turns.append({"role": "user", "content": text})
        try:
            prompt = self._prompt()
        except BaseException:
            self._turns.pop()
            raise
        answer: list[str] = []
        try:
            for piece in self._pieces(prompt):
                answer.append(piece)
                yield piece
        finally:
            self._turns.append({"role": "assistant", "content": "".join(answer).strip()})

    def _pieces(self, prompt: list[int]) -> Iterator[str]:
        room = self._model.config.context - len(prompt)
        if room < self._max_tokens:
            self._notes.append(f"(context nearly full: answers are cut at {room} tokens)")
        yield from self._model.stream(prompt, max_tokens=min(self._max_tokens, room), sampling=self._sampling)

    def _prompt(self) -> list[int]:
        """Token ids of the conversation; drops the oldest exchanges until an answer fits."""
        dropped = 0
        while True:
            ids = self._model.chat_ids(self._system + self._turns)
            if len(ids) + min(self._max_tokens, _LEAST_ANSWER) <= self._model.config.context:
                break
            if len(self._turns) < 3:
                raise UsageError(
                    f"the message takes {len(ids)} tokens, the model's context holds {self._model.config.context} "
                    f"and an answer needs {_LEAST_ANSWER} of them; say it shorter."
                )
            self._turns = self._turns[2:]  # a question and its answer
            dropped += 1
        if dropped:
            plural = "s" if dropped > 1 else ""
            self._notes.append(f"(context full: forgot the oldest {dropped} exchange{plural})")
        return ids

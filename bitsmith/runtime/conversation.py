"""A conversation with a model through its chat template, kept inside the model's context."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

from bitsmith.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from bitsmith.runtime.language_model import LanguageModel
    from bitsmith.runtime.sampling import Sampling
    from bitsmith.runtime.text_stream import GenerationStats

_LEAST_ANSWER = 16  # tokens that an answer needs
_NOTHING_YET = "nothing was said yet."

Message = dict[str, str]  # "role" and "content"


class Conversation:
    """The messages so far. `say` adds the user's next message and streams the model's answer.

    When a prompt would leave no room for an answer, the model no longer sees the oldest exchanges (it always sees the
    system message); `take_notes` says how many. `messages` keeps them.

    max_tokens: the most tokens of an answer; None: as many as the context holds
    stats: figures of the last answer; None before the first
    """

    def __init__(self, model: LanguageModel, *, system: str | None, max_tokens: int | None, sampling: Sampling) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._system: list[Message] = []
        self._turns: list[Message] = []  # user and assistant in turns, an answer last
        self._unseen = 0  # oldest exchanges that the model no longer sees
        self._tries = 0  # answers to the last message beside the present one
        self._notes: list[str] = []
        self.stats: GenerationStats | None = None
        self.set_system(system)

    @property
    def messages(self) -> list[Message]:
        """All messages, the oldest first, with those that the model no longer sees."""
        return [*self._system, *self._turns]

    @property
    def context(self) -> int:
        """Tokens that the model sees at once, answer included."""
        return self._model.config.context

    @property
    def system(self) -> str | None:
        """The system message; None where there is none."""
        return self._system[0]["content"] if self._system else None

    def set_system(self, text: str | None) -> None:
        """Set the system message, or take it away with None or "". The rest of the conversation stays.

        Raises UnsupportedError where the model has no chat template or its template takes no system message, and
        UsageError where the message does not fit the context. Then nothing changes.
        """
        system = [{"role": "system", "content": text}] if text else []
        self._check_room(len(self._model.chat_ids([*system, {"role": "user", "content": ""}])), "system message")
        self._system, self._unseen = system, 0

    def reset(self) -> None:
        """Forget everything except the system message."""
        self._turns, self._unseen, self._tries = [], 0, 0

    def undo(self) -> str:
        """Take back the last message and its answer; the message. Raises UsageError where there is none."""
        if not self._turns:
            raise UsageError(_NOTHING_YET)
        *self._turns, question, _ = self._turns
        self._unseen, self._tries = 0, 0
        return question["content"]

    def take_notes(self) -> list[str]:
        """Notes for the user since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def say(self, text: str) -> Generator[str]:
        """Add the user's message and stream the answer.

        Closing the stream early keeps what was said so far; before the first word of the answer, it takes the message
        back. Raises UsageError where the message alone does not fit the context; then nothing changes.
        """
        question = {"role": "user", "content": text}

        def keep(answer: Message) -> None:
            self._turns += [question, answer]
            self._tries = 0

        yield from self._answer([*self._turns, question], self._sampling, keep)

    def regenerate(self) -> Generator[str]:
        """Stream another answer to the last message, in place of the one it had.

        With a seed, each try has another one. Closing the stream before the first word of the new answer keeps the old
        one. Raises UsageError where nothing was said yet.
        """
        if not self._turns:
            raise UsageError(_NOTHING_YET)
        tries, seed = self._tries + 1, self._sampling.seed

        def keep(answer: Message) -> None:
            self._turns[-1], self._tries = answer, tries

        sampling = self._sampling if seed is None else replace(self._sampling, seed=seed + tries)
        yield from self._answer(self._turns[:-1], sampling, keep)

    def _answer(self, turns: list[Message], sampling: Sampling, keep: Callable[[Message], None]) -> Generator[str]:
        """Stream the answer to the last of `turns`; `keep` gets it at the end, however that comes."""
        prompt = self._prompt(turns)
        room = self._model.config.context - len(prompt)
        if self._max_tokens is not None and room < self._max_tokens:
            self._notes.append(f"(context nearly full: answers are cut at {room} tokens)")
        stream = self._model.stream(prompt, max_tokens=self._max_tokens, sampling=sampling)
        pieces: list[str] = []
        finished = False
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
            finished = True
        finally:
            stream.close()
            self.stats = stream.stats
            text = "".join(pieces).strip()
            if text or finished:
                keep({"role": "assistant", "content": text})

    def _prompt(self, turns: list[Message]) -> list[int]:
        """Token ids of the conversation, without the oldest exchanges if an answer would not fit.

        Raises UsageError where the last message alone leaves no room.
        """
        exchanges = len(turns) // 2
        ids = self._ids(turns, min(self._unseen, exchanges))
        if not self._fits(ids):
            alone = self._ids(turns, exchanges)
            self._check_room(len(alone), "message")
            candidates = range(self._unseen + 1, exchanges)
            fewest = bisect_left(candidates, True, key=lambda unseen: self._fits(self._ids(turns, unseen)))
            unseen = self._unseen + 1 + fewest
            forgotten = unseen - self._unseen
            plural = "s" if forgotten > 1 else ""
            self._notes.append(f"(context full: forgot the oldest {forgotten} exchange{plural})")
            self._unseen = unseen
            ids = self._ids(turns, unseen)
        return ids

    def _ids(self, turns: list[Message], unseen: int) -> list[int]:
        return self._model.chat_ids([*self._system, *turns[2 * unseen :]])

    def _fits(self, ids: list[int]) -> bool:
        return len(ids) + self._least_answer <= self._model.config.context

    def _check_room(self, tokens: int, what: str) -> None:
        if tokens + self._least_answer > self._model.config.context:
            raise UsageError(
                f"the {what} takes {tokens} tokens, the context holds {self._model.config.context} and an answer needs "
                f"{self._least_answer} of them; say it shorter."
            )

    @property
    def _least_answer(self) -> int:
        return _LEAST_ANSWER if self._max_tokens is None else min(self._max_tokens, _LEAST_ANSWER)

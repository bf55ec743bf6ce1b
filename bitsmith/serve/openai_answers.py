"""Answers in the forms of OpenAI's completions and chat completions, whole and streamed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.vocabulary import piece
from bitsmith.serve.answer import Call, Text, Thought
from bitsmith.serve.stream import Progress
from bitsmith.serve.wish import Done, Likely

REASONS = {"end": "stop", "stop": "stop", "length": "length", "context": "length", "cancelled": "stop"}


def usage(done: Sequence[Done], answers: int) -> dict[str, Any]:
    """Counts of tokens; each prompt counts once for all answers to it.

    done: of all answers, those to one prompt one after the other
    answers: number of answers to each prompt
    """
    prompt, drawn = sum(each.prompt_tokens for each in done[::answers]), sum(each.tokens for each in done)
    cached = {"cached_tokens": sum(each.reused for each in done[::answers])}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": drawn,
        "total_tokens": prompt + drawn,
        "prompt_tokens_details": cached,
    }


def sse(value: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


@dataclass
class _Answer:
    """One answer as it grows."""

    text: str = ""
    thought: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    done: Done | None = None

    @property
    def reason(self) -> str:
        """finish_reason."""
        assert self.done is not None
        return "tool_calls" if self.calls and self.done.why in ("end", "stop") else REASONS[self.done.why]


class ChatAnswers:
    """Builds the answers of one request to /v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Tokenizer, count: int) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._tokenizer = tokenizer
        self._answers = [_Answer() for _ in range(count)]

    async def whole(self, coming: AsyncIterator[Progress]) -> dict[str, Any]:
        """All answers, once they have ended."""
        async for each in coming:
            self._add(each)
        choices = [self._choice(number, answer) for number, answer in enumerate(self._answers)]
        done = [each.done for each in self._answers if each.done is not None]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage(done, len(done))}

    async def streamed(self, coming: AsyncIterator[Progress], *, with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events."""
        for number in range(len(self._answers)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        async for each in coming:
            for delta, logprobs in self._add(each):
                yield self._chunk(each.number, delta, logprobs)
            if each.done is not None:
                yield self._chunk(each.number, {}, reason=self._answers[each.number].reason)
        if with_usage:
            done = [each.done for each in self._answers if each.done is not None]
            yield sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(done, len(done))})
        yield "data: [DONE]\n\n"

    def _add(self, each: Progress) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Count in what came; the deltas of it, with the log-probabilities of their tokens."""
        answer, deltas = self._answers[each.number], list[dict[str, Any]]()
        for part in each.parts:
            if isinstance(part, Text):
                answer.text += part.text
                deltas.append({"content": part.text})
            elif isinstance(part, Thought):
                answer.thought += part.text
                deltas.append({"reasoning_content": part.text})
            else:
                call = _call(part)
                answer.calls.append(call)
                deltas.append({"tool_calls": [{"index": len(answer.calls) - 1, **call}]})
        logprobs = [_logprob(self._tokenizer, *drawn) for drawn in each.tokens]
        answer.logprobs += logprobs
        answer.done = each.done or answer.done
        if logprobs and not deltas:
            deltas.append({"content": ""})
        return [(delta, logprobs if i == 0 else []) for i, delta in enumerate(deltas)]

    def _choice(self, number: int, answer: _Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None if answer.calls else answer.text}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        if answer.calls:
            message["tool_calls"] = answer.calls
        logprobs = {"content": answer.logprobs, "refusal": None} if answer.logprobs else None
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": answer.reason}

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: list[dict[str, Any]] | None = None,
        reason: str | None = None,
    ) -> str:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": number, "delta": delta, "logprobs": told, "finish_reason": reason}
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


class TextAnswers:
    """Builds the answers of one request to /v1/completions.

    count: of all answers
    each: of the answers to each prompt
    """

    def __init__(self, model: str, tokenizer: Tokenizer, count: int, *, each: int = 1) -> None:
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._head["object"] = "text_completion"
        self._tokenizer = tokenizer
        self._each = each
        self._texts = [""] * count
        self._drawn: list[list[tuple[Likely, tuple[Likely, ...]]]] = [[] for _ in range(count)]
        self._done: list[Done | None] = [None] * count

    async def whole(self, coming: AsyncIterator[Progress]) -> dict[str, Any]:
        """All answers, once they have ended."""
        async for each in coming:
            self._add(each)
        choices = []
        for number, (text, drawn, done) in enumerate(zip(self._texts, self._drawn, self._done, strict=True)):
            assert done is not None
            choices.append(self._choice(number, text, drawn, REASONS[done.why]))
        return {**self._head, "choices": choices, "usage": self.usage}

    async def streamed(self, coming: AsyncIterator[Progress], *, with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events."""
        async for each in coming:
            text = self._add(each)
            if text or each.tokens:
                yield sse({**self._head, "choices": [self._choice(each.number, text, list(each.tokens), None)]})
            if each.done is not None:
                yield sse({**self._head, "choices": [self._choice(each.number, "", [], REASONS[each.done.why])]})
        if with_usage:
            yield sse({**self._head, "choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"

    @property
    def usage(self) -> dict[str, Any]:
        """Counts of tokens."""
        return usage([done for done in self._done if done is not None], self._each)

    def _add(self, each: Progress) -> str:
        text = "".join(part.text for part in each.parts if isinstance(part, Text | Thought))
        self._texts[each.number] += text
        self._drawn[each.number] += each.tokens
        self._done[each.number] = each.done or self._done[each.number]
        return text

    def _choice(
        self, number: int, text: str, drawn: list[tuple[Likely, tuple[Likely, ...]]], reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if drawn:
            logprobs = {
                "tokens": [_words(self._tokenizer, token.token) for token, _ in drawn],
                "token_logprobs": [token.logprob for token, _ in drawn],
                "top_logprobs": [
                    {_words(self._tokenizer, each.token): each.logprob for each in likely} for _, likely in drawn
                ],
            }
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _logprob(tokenizer: Tokenizer, token: Likely, likely: tuple[Likely, ...]) -> dict[str, Any]:
    return {**_one(tokenizer, token), "top_logprobs": [_one(tokenizer, each) for each in likely]}


def _one(tokenizer: Tokenizer, token: Likely) -> dict[str, Any]:
    data = _bytes(tokenizer, token.token)
    return {"token": data.decode("utf-8", "replace"), "logprob": token.logprob, "bytes": list(data)}


def _words(tokenizer: Tokenizer, token: int) -> str:
    return _bytes(tokenizer, token).decode("utf-8", "replace")


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for; none for rows that pad an embedding."""
    vocabulary = tokenizer.vocabulary
    return piece(vocabulary, token) if token < len(vocabulary.tokens) else b""

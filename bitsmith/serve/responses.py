"""OpenAI's POST /v1/responses: its requests, and answers in its form, whole and streamed. Nothing is stored."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from pydantic import Field

from bitsmith.errors import UsageError
from bitsmith.runtime.sampling import DEFAULT, Sampling
from bitsmith.serve.answer import Call, Part, Text
from bitsmith.serve.requests import Body, checked_tool, choice_of, form_of, plain_message
from bitsmith.serve.stream import Progress
from bitsmith.serve.talk import Ask, Talk
from bitsmith.serve.wish import Done, Drawing


class ResponsesBody(Body):
    """The request. Fields without effect here are read and left: metadata, store, user, include, truncation."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    user: str | None = None
    include: list[str] | None = None
    truncation: str | None = None
    previous_response_id: str | None = None

    def talk(self) -> Talk:
        """What is asked. Raises UsageError."""
        if self.previous_response_id:
            raise UsageError("previous_response_id: answers are not stored; send the whole conversation.")
        given: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p}
        sampling = replace(DEFAULT, **{name: value for name, value in given.items() if value is not None})
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        messages += [_message(item, number) for number, item in enumerate(items, 1)]
        form = form_of(None if self.text is None else self.text.get("format"))
        tools = [checked_tool(tool) for tool in self.tools or []]
        return Talk(
            messages, Ask(self.max_output_tokens, Drawing(sampling), form=form), tools, choice_of(self.tool_choice)
        )


def _message(item: dict[str, Any], number: int) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id", ""), "content": str(item.get("output", ""))}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": item.get("call_id", ""), "type": "function", "function": function}
        return plain_message({"role": "assistant", "content": "", "tool_calls": [call]}, number)
    if kind != "message":
        raise UsageError(
            f"input {number}: unknown type {kind!r}; known are message, function_call, function_call_output."
        )
    return plain_message({"role": item.get("role"), "content": item.get("content")}, number)


class ResponseAnswer:
    """Builds the answer of one request."""

    def __init__(self, model: str, sampling: Sampling) -> None:
        self._sampling = sampling
        self._head = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": int(time.time())}
        self._head["model"] = model
        self._items: list[dict[str, Any]] = []
        self._number = 0

    async def whole(self, coming: AsyncIterator[Progress]) -> dict[str, Any]:
        """The answer, once it has ended."""
        done = None
        async for each in coming:
            for part in each.parts:
                self._add(part)
            done = each.done or done
        assert done is not None
        self._close_items(done)
        return self._response(done)

    async def streamed(self, coming: AsyncIterator[Progress]) -> AsyncIterator[str]:
        """Server-sent events."""
        yield self._event("response.created", response=self._response(None))
        yield self._event("response.in_progress", response=self._response(None))
        async for each in coming:
            for part in each.parts:
                begun = self._add(part)
                at = len(self._items) - 1
                if begun:
                    for event in self._ends(at - 1) + self._begins(at):
                        yield event
                item = self._items[at]
                if isinstance(part, Call):
                    yield self._event(
                        "response.function_call_arguments.delta",
                        item_id=item["id"],
                        output_index=at,
                        delta=part.arguments,
                    )
                elif isinstance(part, Text):
                    yield self._event(
                        "response.output_text.delta",
                        item_id=item["id"],
                        output_index=at,
                        content_index=0,
                        delta=part.text,
                        logprobs=[],
                    )
            if each.done is not None:
                for event in self._ends(len(self._items) - 1, each.done):
                    yield event
                response = self._response(each.done)
                yield self._event(f"response.{response['status']}", response=response)

    def _add(self, part: Part) -> bool:
        """Count in a part; whether it begins an item."""
        last = self._items[-1] if self._items else None
        if isinstance(part, Call):
            item = {"type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": f"call_{uuid.uuid4().hex[:24]}"}
            self._items.append({**item, "name": part.name, "arguments": part.arguments, "status": "in_progress"})
            return True
        kind = "message" if isinstance(part, Text) else "reasoning"
        begins = last is None or last["type"] != kind
        if begins:
            last = {"type": kind, "id": f"{kind[:3]}_{uuid.uuid4().hex}", "status": "in_progress"}
            own = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            last |= {"role": "assistant", "content": [own]} if kind == "message" else _empty_thought()
            self._items.append(last)
        assert last is not None
        last["content"][0]["text"] += part.text
        return begins

    def _begins(self, at: int) -> list[str]:
        item = self._items[at]
        empty = dict(item)
        if item["type"] == "message":
            empty["content"] = []
        elif item["type"] == "function_call":
            empty["arguments"] = ""
        events = [self._event("response.output_item.added", output_index=at, item=empty)]
        if item["type"] == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            place = {"item_id": item["id"], "output_index": at, "content_index": 0}
            events.append(self._event("response.content_part.added", **place, part=part))
        return events

    def _ends(self, at: int, done: Done | None = None) -> list[str]:
        if at < 0:
            return []
        item = self._items[at]
        item["status"] = _status(item, done)
        events, place = [], {"item_id": item["id"], "output_index": at}
        if item["type"] == "message":
            part = item["content"][0]
            told = {**place, "content_index": 0}
            events.append(self._event("response.output_text.done", **told, text=part["text"], logprobs=[]))
            events.append(self._event("response.content_part.done", **told, part=part))
        elif item["type"] == "function_call":
            told = {**place, "name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **told))
        return [*events, self._event("response.output_item.done", output_index=at, item=item)]

    def _close_items(self, done: Done) -> None:
        for item in self._items:
            item["status"] = _status(item, done if item is self._items[-1] else None)

    def _response(self, done: Done | None) -> dict[str, Any]:
        cut = done is not None and _cut(done)
        status = "in_progress" if done is None else "incomplete" if cut else "completed"
        usage = None
        if done is not None:
            usage = {
                "input_tokens": done.prompt_tokens,
                "input_tokens_details": {"cached_tokens": done.reused},
                "output_tokens": done.tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": done.prompt_tokens + done.tokens,
            }
        return {
            **self._head,
            "status": status,
            "output": list(self._items),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        }

    def _event(self, kind: str, **fields: Any) -> str:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(told, ensure_ascii=False)}\n\n"


def _cut(done: Done) -> bool:
    return done.why in ("length", "context")


def _status(item: dict[str, Any], done: Done | None) -> str:
    """The status of an item that has ended. done: the end of the answer, if the item is its last

    Calls are told once they are whole.
    """
    cut = done is not None and _cut(done) and item["type"] != "function_call"
    return "incomplete" if cut else "completed"


def _empty_thought() -> dict[str, Any]:
    return {"summary": [], "content": [{"type": "reasoning_text", "text": ""}]}

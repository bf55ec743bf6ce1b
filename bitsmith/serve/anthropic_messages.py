"""Anthropic's POST /v1/messages: its requests, and answers in its form, whole and streamed."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from pydantic import Field

from bitsmith.errors import UsageError
from bitsmith.runtime.sampling import DEFAULT
from bitsmith.serve.answer import Call, Part, Text, Thought
from bitsmith.serve.requests import Body, check_stops, form_of, objects
from bitsmith.serve.stream import Progress
from bitsmith.serve.talk import Ask, Talk
from bitsmith.serve.wish import Done, Drawing

_REASONS = {"end": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "context": "max_tokens"}


class MessagesBody(Body):
    """The request. Those without effect here are read and left: metadata, service_tier, thinking,
    cache_control. Of output_config the format is read."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool = False
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    thinking: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    def talk(self) -> Talk:
        """What is asked. Raises UsageError."""
        given: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        sampling = replace(DEFAULT, **{name: value for name, value in given.items() if value is not None})
        messages = [{"role": "system", "content": _text(self.system)}] if self.system else []
        for message in self.messages:
            messages += _messages(message)
        check_stops(self.stop_sequences or ())
        tools = [_tool(tool) for tool in self.tools or []]
        form = form_of((self.output_config or {}).get("format"))
        ask = Ask(self.max_tokens, Drawing(sampling), tuple(self.stop_sequences or ()), form=form)
        messages, begun = _begun(messages)
        return Talk(messages, ask, tools, _choice(self.tool_choice), begun)


def _begun(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The messages before the answer, and its beginning where the last one is the model's own. Raises UsageError."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
        return messages, ""
    begun = messages[-1]["content"]
    if begun != begun.rstrip():
        raise UsageError("messages: the last one, the beginning of the answer, ends with white space; leave that out.")
    return messages[:-1], begun


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(tool.get("name"), str) or "input_schema" not in tool:
        raise UsageError('tools: expected {"name": ..., "input_schema": {...}}.')
    function = {"name": tool["name"], "description": tool.get("description", ""), "parameters": tool["input_schema"]}
    return {"type": "function", "function": function}


def _choice(given: dict[str, Any] | None) -> str:
    kind = "auto" if given is None else given.get("type")
    if kind == "tool" and given is not None:
        return str(given.get("name"))
    known = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in known:
        raise UsageError(f"tool_choice: unknown type {kind!r}; known are auto, any, tool, none.")
    return known[kind]


def _messages(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message in OpenAI's form; results of tools become messages of their own."""
    role, content = message.get("role"), message.get("content")
    if isinstance(content, str) or content is None:
        return [{"role": role, "content": content or ""}]
    content = objects(content, "messages: content")
    results = [block for block in content if block.get("type") == "tool_result"]
    found = [
        {"role": "tool", "tool_call_id": block.get("tool_use_id", ""), "content": _text(block.get("content", ""))}
        for block in results
    ]
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": block.get("input")},
        }
        for block in content
        if block.get("type") == "tool_use"
    ]
    text = _text([block for block in content if block.get("type") not in ("tool_result", "tool_use", "thinking")])
    if text or calls or not results:
        found.append({"role": role, "content": text, **({"tool_calls": calls} if calls else {})})
    return found


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = objects(content, "content")
    for block in blocks:
        if block.get("type") != "text":
            raise UsageError(f"this server answers texts; the request holds a block of type {block.get('type')!r}.")
        if not isinstance(block.get("text"), str):
            raise UsageError("content: a block of type 'text' has no text.")
    return "".join(block["text"] for block in blocks)


class MessageAnswer:
    """Builds the answer of one request."""

    def __init__(self, model: str) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}

    async def whole(self, coming: AsyncIterator[Progress]) -> dict[str, Any]:
        """The answer, once it has ended."""
        done = None
        async for each in coming:
            for part in each.parts:
                self._add(part)
            done = each.done or done
        assert done is not None
        return {**self._head, "content": self._blocks, **self._end(done), "usage": self._usage(done)}

    async def streamed(self, coming: AsyncIterator[Progress]) -> AsyncIterator[str]:
        """Server-sent events. The first one says how much of the prompt was in the cache, so the prompt is read by
        then."""
        started = False
        async for each in coming:
            if not started:
                yield self._start(each)
                started = True
            for part in each.parts:
                opened = self._add(part)
                if opened is not None:
                    if len(self._blocks) > 1:
                        yield _event("content_block_stop", index=len(self._blocks) - 2)
                    yield _event("content_block_start", index=len(self._blocks) - 1, content_block=opened)
                yield _event("content_block_delta", index=len(self._blocks) - 1, delta=_delta(part))
            if each.done is not None:
                if self._blocks:
                    yield _event("content_block_stop", index=len(self._blocks) - 1)
                yield _event("message_delta", delta=self._end(each.done), usage=self._usage(each.done))
        yield _event("message_stop")

    def _start(self, first: Progress) -> str:
        start: dict[str, Any] = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
        start["usage"] = _usage(first.prompt_tokens, first.reused, 0)
        return _event("message_start", message=start)

    def _add(self, part: Part) -> dict[str, Any] | None:
        """Count in a part; an empty block, if it begins one."""
        kind = {Text: "text", Thought: "thinking", Call: "tool_use"}[type(part)]
        if isinstance(part, Call):
            block = {"type": kind, "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": part.name}
            self._blocks.append({**block, "input": _object(part.arguments)})
            return {**block, "input": {}}
        if self._blocks and self._blocks[-1]["type"] == kind:
            self._blocks[-1][kind] += part.text
            return None
        empty = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
        self._blocks.append({**empty, kind: part.text})
        return empty

    def _end(self, done: Done) -> dict[str, Any]:
        called = any(block["type"] == "tool_use" for block in self._blocks) and done.why in ("end", "stop")
        reason = "tool_use" if called else _REASONS.get(done.why, "end_turn")
        return {"stop_reason": reason, "stop_sequence": done.stop or None}

    def _usage(self, done: Done) -> dict[str, int]:
        return _usage(done.prompt_tokens, done.reused, done.tokens)


def _usage(prompt: int, reused: int, drawn: int) -> dict[str, int]:
    """Tokens in Anthropic's sense: those of the prompt that the cache held are counted apart."""
    return {"input_tokens": prompt - reused, "cache_read_input_tokens": reused, "output_tokens": drawn}


def _delta(part: Part) -> dict[str, str]:
    if isinstance(part, Call):
        return {"type": "input_json_delta", "partial_json": part.arguments}
    if isinstance(part, Thought):
        return {"type": "thinking_delta", "thinking": part.text}
    return {"type": "text_delta", "text": part.text}


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return {"arguments": arguments}


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n"

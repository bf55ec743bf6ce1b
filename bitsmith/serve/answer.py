"""Takes an answer apart as it comes: what the user reads, what the model thinks, and the tools that it calls.

Models write calls of tools in the form that their chat template shows. Known are `<tool_call>{...}</tool_call>`
(Hermes, Qwen), `[TOOL_CALLS][...]` (Mistral) and a bare JSON object or list (Llama 3, and answers that a grammar
forces).
Thoughts stand between `<think>` and `</think>`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_THINK, _THOUGHT = "<think>", "</think>"
_CALL, _CALLED = "<tool_call>", "</tool_call>"
_CALLS = "[TOOL_CALLS]"
_BARE = re.compile(r"\s*(<\|python_tag\|>)?\s*[\[{]")


@dataclass(frozen=True)
class Text:
    """Text for the user."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Text between the marks of thoughts."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call of a tool. arguments: JSON"""

    name: str
    arguments: str


Part = Text | Thought | Call


class AnswerParser:
    """Give it an answer piece by piece.

    tools: names of the tools that may be called; empty: all text is text
    thinking: whether the prompt already opened the thoughts
    forced: whether the answer must be a call; one that is cut is no text then
    """

    def __init__(self, tools: frozenset[str] = frozenset(), *, thinking: bool = False, forced: bool = False) -> None:
        self._tools = tools
        self._forced = forced
        self._state = "opened" if thinking else "start"
        self._held = ""

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        self._held += text
        parts: list[Part] = []
        if self._forced:
            return parts
        while self._advance(parts):
            pass
        return [part for part in parts if isinstance(part, Call) or part.text]

    def finish(self) -> list[Part]:
        """The rest, at the end of the answer."""
        rest, self._held = self._held, ""
        if self._forced:
            return _calls(rest, self._tools)
        if self._state in ("think", "opened"):
            return [Thought(rest)] if rest else []
        if self._state in ("call", "calls", "bare", "first"):
            calls = _calls(rest, self._tools)
            mark = {"call": _CALL, "calls": _CALLS}.get(self._state, "")
            return calls or [part for part in (Text(mark + rest),) if part.text]
        return [Text(rest)] if rest else []

    def _advance(self, parts: list[Part]) -> bool:
        """Take one step through what is held; whether there may be another."""
        if self._state == "start":
            return self._begin()
        if self._state == "opened":  # blank lines at both ends of thoughts belong to nobody
            return self._skip("think")
        if self._state == "think":
            return self._until(parts, Thought, {_THOUGHT: "after"})
        if self._state == "after":
            return self._skip("first")
        if self._state == "first":
            return self._open()
        if self._state == "text":
            return self._until(parts, Text, {_CALL: "call", _CALLS: "calls"} if self._tools else {})
        if self._state == "call" and _CALLED in self._held:
            inner, _, self._held = self._held.partition(_CALLED)
            parts += _calls(inner, self._tools) or [Text(f"{_CALL}{inner}{_CALLED}")]
            self._state = "between"
            return True
        if self._state == "between":
            return self._skip("text")
        return False

    def _skip(self, state: str) -> bool:
        """Drop blanks, then go to a state."""
        self._held = self._held.lstrip("\n ")
        if self._held:
            self._state = state
        return bool(self._held)

    def _begin(self) -> bool:
        """The beginning of an answer: thoughts, or not."""
        text = self._held.lstrip()
        if text.startswith(_THINK):
            self._held, self._state = text[len(_THINK) :], "opened"
        elif text and not _THINK.startswith(text):
            self._state = "first"
        return self._state != "start"

    def _open(self) -> bool:
        """The beginning of text: a bare call, or not."""
        if self._tools and len(self._held) < len(_CALLS) and _CALLS.startswith(self._held):
            return False
        marked = self._held.startswith(_CALLS)
        self._state = "bare" if self._tools and not marked and _BARE.match(self._held) else "text"
        return True

    def _until(self, parts: list[Part], kind: type[Text] | type[Thought], marks: dict[str, str]) -> bool:
        """Pass text on up to the first of `marks`, and go to its state."""
        places = [(self._held.find(mark), mark) for mark in marks if mark in self._held]
        if places:
            at, mark = min(places)
            parts.append(kind(self._held[:at].rstrip("\n") if kind is Thought else self._held[:at]))
            self._held, self._state = self._held[at + len(mark) :], marks[mark]
            return True
        keep = max((_beginning(self._held, mark) for mark in marks), default=0)
        if kind is Thought:
            sure = self._held[: len(self._held) - keep]
            keep += len(sure) - len(sure.rstrip("\n"))
        parts.append(kind(self._held[: len(self._held) - keep]))
        self._held = self._held[len(self._held) - keep :]
        return False


def _beginning(text: str, mark: str) -> int:
    """The most letters at the end of a text that a mark begins with."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _calls(text: str, tools: frozenset[str]) -> list[Part]:
    """The calls in a JSON object, a list of them, or several one after the other; none if it is anything else."""
    found: list[Part] = []
    rest = text.strip().removeprefix("<|python_tag|>").strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            return []
        for each in value if isinstance(value, list) else [value]:
            call = _call(each)
            if call is None or call.name not in tools:
                return []
            found.append(call)
        rest = rest[end:].strip().lstrip(";").strip()
    return found


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return Call(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))

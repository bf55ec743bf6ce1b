"""Each known shape of records gives a text or a chat; others are refused with what was found."""

from __future__ import annotations

from typing import Any

import pytest

from bitsmith.errors import FileError
from bitsmith.texts.records import Chat, read_record

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "words"}, "words"),
        ({"messages": [USER, ANSWER], "text": "not this"}, Chat((USER, ANSWER))),
        ({"messages": None, "text": "this"}, "this"),
        (
            {"messages": [USER, {"role": "assistant", "content": ""}, ANSWER]},
            Chat((USER, ANSWER), empty=("message 2 (assistant)",)),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            Chat((USER, ANSWER)),
        ),
        ({"conversations": [USER, ANSWER]}, Chat((USER, ANSWER))),
        (
            {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}]},
            Chat(({"role": "system", "content": "Be kind."}, USER)),
        ),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            Chat(
                ({"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}), "Add.\n\n1 2\n\n3"
            ),
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, Chat((USER, ANSWER), "Hi\n\nHello")),
        ({"instruction": "Hi", "output": "Hello"}, Chat((USER, ANSWER), "Hi\n\nHello")),
        ({"prompt": "Once ", "completion": "more"}, "Once more"),
        ({"prompt": [USER], "completion": [ANSWER]}, Chat((USER, ANSWER), given=1)),
        ({"messages": []}, Chat(())),
    ],
)
def test_known_shapes(record: dict[str, Any], expected: str | Chat) -> None:
    assert read_record(record, "here") == expected


def test_what_a_template_may_use_stays() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    assert read_record({"messages": [parts, call]}, "here") == Chat((parts, call))


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ([1], r"x, line 3: expected \{\"messages\".*; found a list, no object"),
        ({"title": "a", "body": "b"}, "Alpaca.* or .*found an object with title, body. Rename"),
        ({}, "found an object with no fields"),
        ({str(n): n for n in range(20)}, "with 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"),
        ({"text": 5}, 'expected "text" to be a string, found a number'),
        ({"messages": "hello"}, 'expected "messages" to be a list'),
        (
            {"messages": [USER, {"role": "captain", "content": "x"}]},
            "message 2: unknown role 'captain'; known are system",
        ),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "message 1: unknown role 'narrator'"),
        ({"messages": [{"content": "x"}]}, "message 1: expected .* found a message with content"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "message 1: expected its content to be a string, found a number",
        ),
        ({"instruction": "x", "output": 5}, 'expected "output" to be a string'),
        ({"prompt": "x"}, "found an object with prompt"),
    ],
)
def test_others_are_refused_by_place_and_content(record: Any, named: str) -> None:
    with pytest.raises(FileError, match=named):
        read_record(record, "x, line 3")

"""Answers are taken apart alike, however they are cut into pieces."""

from __future__ import annotations

import pytest

from bitsmith.serve.answer import AnswerParser, Call, Part, Text, Thought
from bitsmith.serve.stopping import StopWatch

TOOLS = frozenset({"dive", "rise"})


def parsed(text: str, step: int, *, tools: frozenset[str] = TOOLS, thinking: bool = False) -> list[Part]:
    parser = AnswerParser(tools, thinking=thinking)
    parts: list[Part] = []
    for start in range(0, len(text), step):
        parts += parser.feed(text[start : start + step])
    parts += parser.finish()
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + part.text)
        elif isinstance(part, Thought) and isinstance(last, Thought):
            joined[-1] = Thought(last.text + part.text)
        else:
            joined.append(part)
    return joined


DIVE = Call("dive", '{"depth": 3}')


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", [Text("Hello.")]),
        ("a < b and <tool", [Text("a < b and <tool")]),
        ("<think>\nHm.\n</think>\n\nYes.", [Thought("Hm."), Text("Yes.")]),
        ("<think>Hm", [Thought("Hm")]),
        ('<tool_call>\n{"name": "dive", "arguments": {"depth": 3}}\n</tool_call>', [DIVE]),
        ('Wait. <tool_call>{"name": "dive", "arguments": {"depth": 3}}</tool_call>', [Text("Wait. "), DIVE]),
        ('<tool_call>{"name": "dive", "arguments": {"depth": 3}}', [DIVE]),
        ('<tool_call>{"name": "fly", "arguments": {}}</tool_call>', None),
        ('[TOOL_CALLS][{"name": "dive", "arguments": {"depth": 3}}]', [DIVE]),
        ('{"name": "dive", "parameters": {"depth": 3}}', [DIVE]),
        ('{"name": "dive", "parameters": {"depth": 3}}; {"name": "rise"}', [DIVE, Call("rise", "{}")]),
        ('{"no": "call"}', [Text('{"no": "call"}')]),
        ("<think>Hm.</think>" + '{"name": "rise"}', [Thought("Hm."), Call("rise", "{}")]),
    ],
)
def test_parts(text: str, expected: list[Part] | None, step: int) -> None:
    assert parsed(text, step) == ([Text(text)] if expected is None else expected)


def test_without_tools_everything_is_text() -> None:
    text = '<tool_call>{"name": "dive"}</tool_call>'
    assert parsed(text, 3, tools=frozenset()) == [Text(text)]


def test_thoughts_that_the_prompt_opened() -> None:
    assert parsed("Hm.</think>Yes.", 2, thinking=True) == [Thought("Hm."), Text("Yes.")]


@pytest.mark.parametrize("step", [1, 3, 100])
def test_stops(step: int) -> None:
    text = "one\ntwo\n\nthree"
    watch = StopWatch(("\n\n", "xyz"))
    passed = "".join(watch.feed(text[at : at + step]) for at in range(0, len(text), step)) + watch.finish()
    assert (passed, watch.found) == ("one\ntwo", "\n\n")


def test_what_only_looks_like_a_stop_is_passed_on_at_the_end() -> None:
    watch = StopWatch(("stop",))
    assert watch.feed("do not sto") == "do not "
    assert watch.finish() == "sto"

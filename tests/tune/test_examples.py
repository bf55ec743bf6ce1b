"""What becomes of records: token ids, and which of them are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.tune.examples import Example, Examples, read_examples
from tests.tiny import HERMES, make_folder
from tests.tune.data import write_lines


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_checkpoint("reference").tokenizer()


def read(tokenizer: Any, path: Path, context: int = 64) -> Examples:
    return read_examples([path], tokenizer, context=context, option="--data")


def shown(tokenizer: Tokenizer, example: Example) -> str:
    """The learned tokens as text."""
    return tokenizer.decode(example.ids[example.learned].tolist(), special=True)


def test_answers_of_a_chat_are_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes, one."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "No, two."},
    ]
    found = read(tokenizer, write_lines(tmp_path / "x.jsonl", [{"messages": messages}]))
    (example,) = found.examples
    assert shown(tokenizer, example) == "Yes, one.<|endoftext|>No, two.<|endoftext|>"
    assert example.ids.tolist() == list(tokenizer.encode_chat(messages, add_generation_prompt=False))[: len(example)]
    assert found.learned == int(example.learned.sum())


class Forgetful:
    """A tokenizer whose template leaves thoughts out of all answers but the last, as reasoning models have it."""

    bos, adds_bos, has_chat_template, end_ids, eos = None, False, True, frozenset({0}), 0

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_chat(self, messages: Any, *, add_generation_prompt: bool) -> list[int]:
        ids: list[int] = []
        for number, message in enumerate(messages):
            content = message["content"]
            if message["role"] == "assistant":
                content = content if number == len(messages) - 1 else content.rpartition("*")[2]
                ids += [1, *self.encode(content, add_special=False), 0, 10]
            else:
                ids += [2, *self.encode(content, add_special=False)]
        return [*ids, 1] if add_generation_prompt else ids


def test_answers_that_are_written_otherwise_later_are_examples_of_their_own(tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "think*b"), ("user", "c"), ("assistant", "again*d")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    found = read(Forgetful(), write_lines(tmp_path / "x.jsonl", [record]))
    said = ["".join(map(chr, each.ids[each.learned])) for each in found.examples]
    assert said == ["think*b\0", "again*d\0"]
    assert found.records == 1


def test_completions(tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = read(tokenizer, write_lines(tmp_path / "x.jsonl", [{"prompt": "2 + 2 =", "completion": " four"}]))
    assert shown(tokenizer, found.examples[0]) == " four<|endoftext|>"
    lists = {
        "prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "completion": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Ciao"}],
    }
    found = read(tokenizer, write_lines(tmp_path / "y.jsonl", [lists]))
    assert shown(tokenizer, found.examples[0]) == "Ciao<|endoftext|>"


def test_a_long_text_becomes_windows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "One two three four. " * 40
    found = read(tokenizer, write_lines(tmp_path / "x.jsonl", [{"text": text}]), context=32)
    joined = np.concatenate([each.ids for each in found.examples]).tolist()
    assert joined == [*tokenizer.encode(text, add_special=True), 0][: len(joined)]
    assert max(map(len, found.examples)) == 32
    assert all(each.learned[1:].all() and not each.learned[0] for each in found.examples)
    assert found.cut == 0


def test_long_chats_are_cut_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def chat(asked: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}

    path = write_lines(tmp_path / "x.jsonl", [chat("a", "b"), chat("a", "b " * 90), chat("a " * 90, "b")])
    found = read(tokenizer, path)
    assert (len(found.examples), found.cut, found.dropped, found.records) == (2, 2, 1, 3)
    assert len(found.examples[1]) == 64


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [', "line 2: not JSON"),
        ('{"messages": []}', "line 2: the chat has no messages"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: the chat has no answer of the assistant"),
        ('{"messages": [{"role": "pirate", "content": "a"}]}', "line 2, message 1: unknown role 'pirate'"),
        (
            '{"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": "b"}]}',
            "line 2: message 1 (user) has no content",
        ),
        (
            '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, '
            '{"role": "assistant", "content": "b"}, {"role": "user"}, {"role": "assistant", "content": "c"}]}',
            "line 2: message 4 (user) has no content",
        ),
        ('{"prompt": "a", "completion": " "}', "line 2: the completion is empty"),
        ('{"text": ""}', "line 2: the text is empty"),
        ('{"title": "a"}', "line 2: expected"),
    ],
)
def test_bad_lines_are_named(tokenizer: Tokenizer, tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(FileError) as failed:
        read(tokenizer, path)
    assert f"x.jsonl, {said}" in str(failed.value)
    assert str(failed.value).count("x.jsonl") == 1


def test_nothing_to_learn_within_the_context(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"prompt": "a " * 90, "completion": "b"}])
    with pytest.raises(FileError, match="nothing to learn within a context of 64 tokens"):
        read(tokenizer, path)


def test_parts_of_text_are_one_message(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def chat(asked: Any, answer: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}

    parts = chat(
        [{"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}], [{"type": "text", "text": "Hello"}]
    )
    first = read(tokenizer, write_lines(tmp_path / "x.jsonl", [parts]))
    second = read(tokenizer, write_lines(tmp_path / "y.jsonl", [chat("Hi you", "Hello")]))
    assert first.examples[0].ids.tolist() == second.examples[0].ids.tolist()
    assert shown(tokenizer, first.examples[0]) == "Hello<|endoftext|>"
    picture = write_lines(tmp_path / "z.jsonl", [chat([{"type": "image", "image": "x.png"}], "A cat")])
    with pytest.raises(FileError, match=r"z\.jsonl.* has a part of type 'image'"):
        read(tokenizer, picture)


def test_calls_that_a_template_does_not_write_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    data = write_lines(tmp_path / "x.jsonl", [{"messages": talk}])
    with pytest.raises(UnsupportedError, match=r"x\.jsonl.* does not write tool_calls"):
        read(tokenizer, data)
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    data = write_lines(tmp_path / "x.jsonl", [{"messages": talk, "tools": tools}])
    with pytest.raises(UnsupportedError, match="does not write tools"):
        read(tokenizer, data)
    with pytest.raises(FileError, match='"tools" to be a list of objects'):
        read(tokenizer, write_lines(tmp_path / "x.jsonl", [{"messages": talk, "tools": "add"}]))


def test_calls_that_a_template_writes_are_learned(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(HERMES)
    tokenizer = open_checkpoint(folder).tokenizer()
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    talk = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    found = read(tokenizer, write_lines(tmp_path / "x.jsonl", [{"messages": talk, "tools": tools}]), context=256)
    assert '"add"' in shown(tokenizer, found.examples[0])
    assert "<tools>" in tokenizer.decode(found.examples[0].ids.tolist(), special=True)

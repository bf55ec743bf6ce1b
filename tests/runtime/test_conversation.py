"""A conversation stays inside the context, forgets the oldest first, and says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bitsmith.errors import UsageError
from bitsmith.runtime.conversation import Conversation
from bitsmith.runtime.generate import Sampling


class Echo:
    """A model of one token a word, whose answers are always "yes indeed"."""

    def __init__(self, context: int) -> None:
        self.config = SimpleNamespace(context=context)
        self.seen: list[list[str]] = []
        self.limits: list[int] = []

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        self.seen.append([f"{m['role']}:{m['content']}" for m in messages])
        return [0] * sum(len(m["content"].split()) for m in messages)

    def stream(self, prompt: Sequence[int], *, max_tokens: int, sampling: Sampling) -> Iterator[str]:
        self.limits.append(max_tokens)
        yield from ("yes", " indeed")


def talk(model: Any, *, system: str | None = None, max_tokens: int = 8) -> Conversation:
    return Conversation(model, system=system, max_tokens=max_tokens, sampling=Sampling())


def test_the_model_sees_the_whole_conversation() -> None:
    model = Echo(100)
    conversation = talk(model, system="be brief")
    assert "".join(conversation.say("one")) == "yes indeed"
    list(conversation.say("two"))
    assert model.seen[-1] == ["system:be brief", "user:one", "assistant:yes indeed", "user:two"]
    assert conversation.take_notes() == []


def test_the_oldest_exchange_is_forgotten_and_told() -> None:
    model = Echo(24)
    conversation = talk(model, system="be brief")
    for word in ("a b c d e", "f g h i j", "k l m n o"):
        list(conversation.say(word))
    assert model.seen[-1] == ["system:be brief", "user:f g h i j", "assistant:yes indeed", "user:k l m n o"]
    assert any("forgot the oldest 1 exchange" in note for note in conversation.take_notes())
    assert conversation.take_notes() == []


def test_a_message_too_long_for_the_context_is_refused_and_not_kept() -> None:
    model = Echo(20)
    conversation = talk(model)
    list(conversation.say("short"))
    with pytest.raises(UsageError, match="say it shorter"):
        list(conversation.say("word " * 30))
    list(conversation.say("again"))
    assert model.seen[-1][-1] == "user:again"
    assert not any("word word" in line for line in model.seen[-1])


def test_an_answer_is_cut_to_the_room_left() -> None:
    model = Echo(40)
    conversation = talk(model, max_tokens=32)
    list(conversation.say("a b"))
    assert conversation.take_notes() == []
    list(conversation.say("word " * 10))
    assert model.limits == [32, 40 - 14]
    assert conversation.take_notes() == ["(context nearly full: answers are cut at 26 tokens)"]


def test_a_stopped_answer_is_kept_as_far_as_it_came() -> None:
    model = Echo(100)
    conversation = talk(model)
    stream = conversation.say("one")
    next(stream)
    stream.close()
    list(conversation.say("two"))
    assert model.seen[-1] == ["user:one", "assistant:yes", "user:two"]


def test_reset_forgets_all_but_the_system_message() -> None:
    model = Echo(100)
    conversation = talk(model, system="be brief")
    list(conversation.say("one"))
    conversation.reset()
    list(conversation.say("two"))
    assert model.seen[-1] == ["system:be brief", "user:two"]

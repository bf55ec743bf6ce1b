"""A conversation stays inside the context, forgets the oldest first, and says so."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.runtime.conversation import Conversation
from bitsmith.runtime.sampling import Sampling
from bitsmith.runtime.text_stream import TextStream, TimedTokens


class Echo:
    """A model of one token a word, whose answers are always "yes indeed"."""

    def __init__(self, context: int) -> None:
        self.config = SimpleNamespace(context=context)
        self.seen: list[list[str]] = []
        self.limits: list[int | None] = []
        self.samplings: list[Sampling] = []
        self.answer: Iterable[str] = ("yes", " indeed")

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        self.seen.append([f"{m['role']}:{m['content']}" for m in messages])
        return [0] * sum(len(m["content"].split()) for m in messages)

    def stream(self, prompt: Sequence[int], *, max_tokens: int | None, sampling: Sampling) -> TextStream:
        self.limits.append(max_tokens)
        self.samplings.append(sampling)
        tokens = TimedTokens(iter(()), prompt_tokens=len(prompt), reused_tokens=0)
        return TextStream(tokens, self._pieces())

    def _pieces(self) -> Generator[str]:
        yield from self.answer


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


def test_what_is_forgotten_is_still_in_the_messages_and_comes_back_with_undo() -> None:
    model = Echo(30)
    conversation = talk(model)
    for word in ("a", "b", "c"):
        list(conversation.say(word))
    list(conversation.say("word " * 17))  # makes the model forget more than one exchange at once
    assert model.seen[-1][0] == "user:c"
    assert conversation.take_notes() == ["(context full: forgot the oldest 2 exchanges)"]
    assert [m["content"] for m in conversation.messages if m["role"] == "user"][:3] == ["a", "b", "c"]
    assert conversation.undo() == "word " * 17
    list(conversation.say("d"))
    assert model.seen[-1][0] == "user:a"


def test_a_message_too_long_for_the_context_is_refused_and_erases_nothing() -> None:
    model = Echo(20)
    conversation = talk(model, system="be brief")
    list(conversation.say("short"))
    before = conversation.messages
    with pytest.raises(UsageError, match=r"the message takes 32 tokens, the context holds 20 .* say it shorter"):
        list(conversation.say("word " * 30))
    assert conversation.messages == before
    assert conversation.take_notes() == []
    list(conversation.say("again"))
    assert model.seen[-1] == ["system:be brief", "user:short", "assistant:yes indeed", "user:again"]


def test_an_answer_that_the_context_will_cut_is_announced() -> None:
    model = Echo(40)
    conversation = talk(model, max_tokens=32)
    list(conversation.say("a b"))
    assert conversation.take_notes() == []
    list(conversation.say("word " * 10))
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


def test_an_answer_stopped_before_its_first_word_takes_the_message_back() -> None:
    def interrupted() -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    model = Echo(100)
    conversation = talk(model)
    list(conversation.say("one"))
    before = conversation.messages
    model.answer = interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(conversation.say("two"))
    assert conversation.messages == before
    model.answer = interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(conversation.regenerate())
    assert conversation.messages == before
    model.answer = ()  # an empty answer that the model ended itself is one
    list(conversation.say("three"))
    assert conversation.messages[-2:] == [
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": ""},
    ]


def test_another_answer_replaces_the_last_one() -> None:
    model = Echo(100)
    conversation = Conversation(model, system=None, max_tokens=8, sampling=Sampling(seed=5))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing was said yet"):
        list(conversation.regenerate())
    list(conversation.say("one"))
    model.answer = ("no",)
    assert list(conversation.regenerate()) == ["no"]
    list(conversation.regenerate())
    assert conversation.messages == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "no"}]
    assert model.seen[-1] == ["user:one"]
    assert [sampling.seed for sampling in model.samplings] == [5, 6, 7]  # or it would be the same answer
    list(conversation.say("two"))
    assert model.samplings[-1].seed == 5


def test_undo_takes_the_last_exchange_back() -> None:
    model = Echo(100)
    conversation = talk(model, system="be brief")
    list(conversation.say("one"))
    list(conversation.say("two"))
    assert conversation.undo() == "two"
    list(conversation.say("three"))
    assert model.seen[-1] == ["system:be brief", "user:one", "assistant:yes indeed", "user:three"]
    conversation.undo()
    conversation.undo()
    with pytest.raises(UsageError, match="nothing was said yet"):
        conversation.undo()


def test_the_system_message_can_change() -> None:
    model = Echo(30)
    conversation = talk(model, system="be brief")
    list(conversation.say("one"))
    conversation.set_system("be long")
    list(conversation.say("two"))
    assert model.seen[-1] == ["system:be long", "user:one", "assistant:yes indeed", "user:two"]
    with pytest.raises(UsageError, match="the system message takes 40 tokens"):
        conversation.set_system("word " * 40)
    assert conversation.system == "be long"
    conversation.set_system("")
    list(conversation.say("three"))
    assert conversation.system is None
    assert model.seen[-1][0] == "user:one"


def test_a_template_without_a_system_message_is_found_at_once() -> None:
    class NoSystem(Echo):
        def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
            if messages[0]["role"] == "system":
                raise UnsupportedError("no system role")
            return super().chat_ids(messages)

    with pytest.raises(UnsupportedError):
        talk(NoSystem(100), system="be brief")
    conversation = talk(NoSystem(100))
    with pytest.raises(UnsupportedError):
        conversation.set_system("be brief")
    list(conversation.say("one"))
    assert conversation.system is None


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    model = Echo(40)
    conversation = Conversation(model, system=None, max_tokens=None, sampling=Sampling())  # type: ignore[arg-type]
    list(conversation.say("a b"))
    assert model.limits == [None]
    assert conversation.take_notes() == []

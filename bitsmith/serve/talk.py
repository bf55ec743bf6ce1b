"""A request to continue a text or a conversation, whatever API it came through, and the wishes it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.models.tokenizer.spelled import texts_in
from bitsmith.runtime.messages import check_messages
from bitsmith.serve.answer import AnswerParser
from bitsmith.serve.engine import Engine
from bitsmith.serve.grammar import ANY_JSON
from bitsmith.serve.wish import PLAIN, Drawing, Wish


@dataclass(frozen=True)
class Form:
    """The form that an answer must have. One of them at most.

    schema: a JSON schema as JSON; "" for none
    lark, regex: a grammar in Lark's form, a regular expression; "" for none
    """

    schema: str = ""
    lark: str = ""
    regex: str = ""


@dataclass(frozen=True)
class Ask:
    """What all requests have.

    answers: number of answers
    """

    max_tokens: int | None = None
    drawing: Drawing = PLAIN
    stops: tuple[str, ...] = ()
    answers: int = 1
    form: Form = Form()


MOST_ANSWERS = 16  # to one text


@dataclass(frozen=True)
class Talk:
    """A conversation to answer.

    messages: in OpenAI's form, plain values; arguments of calls are objects
    tools: functions as OpenAI describes them
    choice: "auto", "none", "required", or the name of the tool that must be called
    begun: the beginning of the answer, that the model continues
    """

    messages: Sequence[Mapping[str, Any]]
    ask: Ask
    tools: Sequence[Mapping[str, Any]] = ()
    choice: str = "auto"
    begun: str = ""


@dataclass(frozen=True)
class Prepared:
    """The wishes of a request, one an answer, and how their texts are taken apart.

    tools: names of the tools that may be called
    thinking: whether the prompt opened the thoughts
    forced: whether the answer must be a call
    """

    wishes: tuple[Wish, ...]
    tools: frozenset[str] = frozenset()
    thinking: bool = False
    forced: bool = False

    def parser(self) -> AnswerParser:
        """For one answer."""
        return AnswerParser(self.tools, thinking=self.thinking, forced=self.forced)


def prepare_text(engine: Engine, prompt: str | Sequence[int], ask: Ask) -> Prepared:
    """The wishes of a text to continue. Raises UsageError."""
    ids = engine.model.prompt_ids(prompt) if isinstance(prompt, str) else list(prompt)
    outside = [token for token in ids if not 0 <= token < engine.model.config.vocab]
    if outside:
        raise UsageError(f"prompt: token {outside[0]} is not in 0..{engine.model.config.vocab - 1}.")
    return Prepared(_wishes(engine, ids, ask))


def check_talk(engine: Engine, talk: Talk) -> None:
    """Raise UsageError for messages of the wrong form, and for more text than a context holds, before any work."""
    check_messages(talk.messages)
    engine.model.check_length("".join([*texts_in([talk.messages, talk.tools]), talk.begun]))


def prepare_talk(engine: Engine, talk: Talk) -> Prepared:
    """The wishes of a conversation, through the model's chat template. Raises UsageError, UnsupportedError."""
    check_talk(engine, talk)
    names = frozenset(str(tool["function"]["name"]) for tool in talk.tools)
    if talk.choice not in ("auto", "none", "required") and talk.choice not in names:
        raise UsageError(
            f"tool_choice: there is no tool {talk.choice!r}; known are {', '.join(sorted(names)) or 'none'}."
        )
    if talk.choice == "required" and not names:
        raise UsageError('tool_choice: "required" needs tools.')
    used = [] if talk.choice == "none" else list(talk.tools)
    forced = bool(used) and talk.choice != "auto"
    if talk.begun and (forced or talk.ask.form != Form()):
        raise UsageError(
            "messages: the answer is begun, and it must be a call or have a form of its own; end with a message of the "
            "user."
        )
    if forced and talk.ask.form != Form():
        raise UsageError(
            "tool_choice: a call is forced, and another form of the answer is asked for; give one of them."
        )
    ids, thinking = _begin(engine.model.tokenizer, talk, used)
    ask = talk.ask
    if forced:
        ask = replace(ask, form=Form(schema=_call_schema(used, talk.choice)))
    wishes = _wishes(engine, ids, ask)
    if used:
        wishes = tuple(replace(wish, special=True) for wish in wishes)
    return Prepared(wishes, names if used else frozenset(), thinking and not wishes[0].drawing.grammar, forced)


def _begin(tokenizer: Tokenizer, talk: Talk, tools: Sequence[Mapping[str, Any]]) -> tuple[list[int], bool]:
    """Tokens up to where the model goes on, and whether it is within its thoughts there. Raises UsageError."""
    ids = tokenizer.encode_chat(talk.messages, tools=tools or None)
    if tools:
        _check_told(tokenizer, talk, ids)
    thinking = tokenizer.decode(ids[-8:], special=True).rstrip().endswith("<think>")
    if not talk.begun:
        return ids, thinking
    if thinking:
        raise UsageError(
            "messages: the model begins each answer with its thoughts, so that no text can be put before; end with a "
            "message of the user."
        )
    return tokenizer.encode_chat(talk.messages, tools=tools or None, begun=talk.begun), False


def _check_told(tokenizer: Tokenizer, talk: Talk, ids: Sequence[int]) -> None:
    """Raise UsageError where the prompt is the same without tools: the model would know nothing of them."""
    try:
        without = tokenizer.encode_chat(talk.messages)
    except UnsupportedError:  # so the template reads the tools
        return
    if without == ids:
        raise UsageError(
            "tools: the model's chat template does not tell the model of tools, so it would know nothing of them; "
            "leave tools out and describe them in a message, or serve a model whose template writes tools."
        )


def count_talk(engine: Engine, talk: Talk) -> int:
    """Tokens of a conversation's prompt. Raises as `prepare_talk`."""
    check_talk(engine, talk)
    tools = () if talk.choice == "none" else talk.tools
    return len(_begin(engine.model.tokenizer, talk, tools)[0])


def with_grammar(engine: Engine, ask: Ask) -> Ask:
    """The same with the grammar of its form, for all texts of a request. Raises UsageError."""
    return replace(ask, drawing=replace(ask.drawing, grammar=_grammar(engine, ask.form)), form=Form())


def check_answers(number: int) -> None:
    """Raise UsageError for a number of answers out of range."""
    if not 1 <= number <= MOST_ANSWERS:
        raise UsageError(f"n: expected 1 to {MOST_ANSWERS} answers, found {number}.")


def _wishes(engine: Engine, ids: Sequence[int], ask: Ask) -> tuple[Wish, ...]:
    check_answers(ask.answers)
    if ask.form != Form():
        ask = with_grammar(engine, ask)
    wishes = tuple(Wish(ids, ask.max_tokens, ask.drawing, ask.stops, number) for number in range(ask.answers))
    engine.check(wishes[0])
    return wishes


def _grammar(engine: Engine, form: Form) -> str:
    if form.schema:
        return engine.grammars.schema(form.schema)
    if form.lark:
        return engine.grammars.lark(form.lark)
    if form.regex:
        return engine.grammars.regex(form.regex)
    return ""


def _call_schema(tools: Sequence[Mapping[str, Any]], choice: str) -> str:
    """The schema of a call of one of these tools."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or json.loads(ANY_JSON),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
        if choice in ("required", tool["function"]["name"])
    ]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})

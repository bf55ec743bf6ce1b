"""The bodies of OpenAI's requests, and what they ask. Fields that are not known are refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitsmith.errors import UsageError
from bitsmith.runtime.sampling import DEFAULT
from bitsmith.serve.grammar import ANY_JSON
from bitsmith.serve.talk import Ask, Form, Talk
from bitsmith.serve.wish import Drawing

_MOST_STOPS, _LONGEST_STOP = 16, 1000
_MOST_BIASES = 1024
_IMAGES = "this server answers texts; the request holds a part of type {kind!r}."


class Body(BaseModel):
    """Unknown fields are errors: a client that asks for something must not believe that it was heard.

    A field that is null is one that is not given, whether it is known or not.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """What is given. Known fields that may be null stay."""
        if not isinstance(given, dict):
            return given
        may = {name for name, each in cls.model_fields.items() if type(None) in get_args(each.annotation)}
        needed = {name for name, each in cls.model_fields.items() if each.is_required()}
        return {key: value for key, value in given.items() if value is not None or key in may | needed}


class Common(Body):
    """Fields of all requests that generate. Those without effect here are read and left: user, metadata, store."""

    model: str | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    grammar: str | None = None
    regex: str | None = None

    def ask(self, max_tokens: int | None, top_logprobs: int | None, form: Form) -> Ask:
        """What is asked. Raises UsageError for values out of range."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        check_stops(stops)
        given = {"response_format": form != Form(), "grammar": self.grammar, "regex": self.regex}
        if sum(map(bool, given.values())) > 1:
            names = ", ".join(name for name, value in given.items() if value)
            raise UsageError(f"{names}: an answer can have one form; give one of them.")
        form = form if form != Form() else Form(lark=self.grammar or "", regex=self.regex or "")
        bias = _biases(self.logit_bias or {})
        drawing = Drawing(
            replace(DEFAULT, **self._sampling()),
            self.frequency_penalty or 0.0,
            self.presence_penalty or 0.0,
            bias,
            top_logprobs,
        )
        return Ask(max_tokens, drawing, tuple(stops), 1 if self.n is None else self.n, form)

    def _sampling(self) -> dict[str, Any]:
        """The fields of `Sampling` that the client gives."""
        names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
        given = {name: getattr(self, name) for name in names}
        found = {name: value for name, value in given.items() if value is not None}
        if found.get("seed", 0) < 0:
            found["seed"] %= 1 << 63
        return found


class CompletionBody(Common):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = 16
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    def asked(self) -> Ask:
        """What is asked. Raises UsageError."""
        for name, value, harmless in (
            ("echo", self.echo, False),
            ("best_of", self.best_of, 1),
            ("suffix", self.suffix, ""),
        ):
            if value is not None and value != harmless:
                raise UsageError(f"{name}: not supported; leave it out.")
        return self.ask(self.max_tokens, self.logprobs, Form())

    def prompts(self) -> list[str | list[int]]:
        """The texts to continue."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return [[int(str(token)) for token in given]]
        return [each for each in given if not isinstance(each, int)]


class ChatBody(Common):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None

    def talk(self) -> Talk:
        """What is asked. Raises UsageError."""
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        if self.top_logprobs and not self.logprobs:
            raise UsageError('top_logprobs: give "logprobs": true with it.')
        if self.modalities not in (None, ["text"]):
            raise UsageError('modalities: this server answers texts; expected ["text"], or leave it out.')
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        tools = [checked_tool(tool) for tool in self.tools or []]
        messages = [plain_message(message, number) for number, message in enumerate(self.messages, 1)]
        ask = self.ask(most, logprobs, form_of(self.response_format))
        return Talk(messages, ask, tools, choice_of(self.tool_choice))


class EmbeddingBody(Body):
    """POST /v1/embeddings. pooling: of the last hidden states; ours"""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["mean", "last"] = "mean"


def check_stops(stops: Sequence[str]) -> None:
    """Raise UsageError for texts that cannot be stops. They are few and short, as each token is held against all."""
    if any(not stop for stop in stops):
        raise UsageError("stop: an empty text would end every answer.")
    if len(stops) > _MOST_STOPS or any(len(stop) > _LONGEST_STOP for stop in stops):
        raise UsageError(f"stop: expected at most {_MOST_STOPS} texts of {_LONGEST_STOP} characters.")


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    """logit_bias by token. Raises UsageError."""
    if len(given) > _MOST_BIASES:
        raise UsageError(f"logit_bias: {len(given):,} tokens; expected at most {_MOST_BIASES:,}.")
    wrong = next((value for value in given.values() if not abs(value) <= 100), None)
    if wrong is not None:
        raise UsageError(f"logit_bias: expected numbers from -100 to 100, found {wrong}.")
    return {_token(key): value for key, value in given.items()}


def form_of(given: Any) -> Form:
    """response_format, in OpenAI's form. Raises UsageError."""
    if given is not None and not isinstance(given, dict):
        raise UsageError('response_format: expected an object as {"type": "json_object"}.')
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return Form()
    if kind == "json_object":
        return Form(schema=ANY_JSON)
    if kind == "json_schema":
        inner = given.get("json_schema", given)
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise UsageError("response_format: json_schema has no schema.")
        return Form(schema=json.dumps(schema))
    raise UsageError(f"response_format: unknown type {kind!r}; known are text, json_object, json_schema.")


def choice_of(given: str | dict[str, Any] | None) -> str:
    """tool_choice: a word, or the name of a tool."""
    if given is None or isinstance(given, str):
        return given or "auto"
    function = given.get("function")
    name = given.get("name") or (function.get("name") if isinstance(function, dict) else None)
    if not isinstance(name, str):
        raise UsageError('tool_choice: expected {"type": "function", "function": {"name": ...}}.')
    return name


def checked_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if tool.get("type", "function") != "function" or not isinstance(name, str) or not name:
        raise UsageError('tools: expected {"type": "function", "function": {"name": ..., "parameters": ...}}.')
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if key not in ("strict", "type")},
    }


def plain_message(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message as chat templates read it: content is a text, arguments of calls are objects."""
    found = {
        key: value for key, value in message.items() if value is not None and key not in ("refusal", "annotations")
    }
    if found.get("role") == "developer":
        found["role"] = "system"
    if "content" in found:
        found["content"] = _text_of(found["content"], number)
    elif "tool_calls" in found:
        found["content"] = ""
    if "tool_calls" in found:
        calls = objects(found["tool_calls"], f"message {number}: tool_calls")
        found["tool_calls"] = [_plain_call(call, number) for call in calls]
    return found


def _text_of(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UsageError(f"message {number}: content must be a text or a list of parts.")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            raise UsageError(f"message {number}: {_IMAGES.format(kind=kind)}")
        texts.append(str(part.get("text", "")))
    return "".join(texts)


def objects(given: Any, where: str) -> list[dict[str, Any]]:
    """A list of JSON objects. Raises UsageError for anything else; where: what it is, for the message"""
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise UsageError(f"{where}: expected a list of JSON objects.")
    return given


def _plain_call(call: dict[str, Any], number: int) -> dict[str, Any]:
    given = call.get("function")
    if not isinstance(given, dict):
        raise UsageError(f"message {number}: a call has no function.")
    function = dict(given)
    arguments = function.get("arguments", "{}")
    try:
        function["arguments"] = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise UsageError(f"message {number}: the arguments of a call are no JSON: {error}.") from error
    return {**call, "function": function}


def _token(key: str) -> int:
    try:
        return int(key)
    except ValueError as error:
        raise UsageError(f"logit_bias: {key!r} is no token id.") from error

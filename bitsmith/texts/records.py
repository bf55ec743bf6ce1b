"""Shapes of records in data sets, each read as a text or as a chat.

Known are chats ({"messages": [...]}), ShareGPT ({"conversations": [{"from", "value"}]}), Alpaca ({"instruction",
"input", "output"}), a prompt with its completion, and {"text": ...}. A record that has several shapes is read by the
first row of SHAPES that fits it. Fields that are null count as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitsmith.errors import FileError

_ROLES = {  # role in a file -> role for chat templates
    **{role: role for role in ("system", "developer", "user", "assistant", "tool", "function", "ipython")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant"},
}
_SHOWN = 8  # keys in a message


@dataclass(frozen=True)
class Chat:
    """A conversation.

    messages: "role" and "content" of each message, oldest first; without messages that have no content
    plain: the same as a text, for a model without a chat template; None if only a template can write it
    given: number of messages at the start that a model is not to learn, whoever speaks: those of a prompt
    tools: what the assistant may call, as templates take it
    empty: messages of the user and the assistant that were left out: "message 2 (user)"
    """

    messages: tuple[Mapping[str, Any], ...]
    plain: str | None = None
    given: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()
    empty: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completed:
    """A prompt and the text that follows it, without a gap."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Shape:
    """One shape of records. keys: fields that a record must have; shown: the shape in messages"""

    keys: tuple[str, ...]
    shown: str
    read: Callable[[Mapping[str, Any], str], str | Chat | Completed]


def read_record(record: Any, where: str) -> str | Chat:
    """A record as a text or a chat; empty if it has no content. See `read_parts`."""
    found = read_parts(record, where)
    return found.prompt + found.completion if isinstance(found, Completed) else found


def read_parts(record: Any, where: str) -> str | Chat | Completed:
    """A record with its prompt and its completion apart, if it has them.

    where: file and line, for messages
    Raises FileError for an unknown shape, an unknown role, and a field that has the wrong type.
    """
    if not isinstance(record, Mapping):
        raise FileError(f"{where}: expected {_known()}; found {_kind(record)}, no object.")
    shape = next((each for each in SHAPES if all(record.get(key) is not None for key in each.keys)), None)
    if shape is None:
        raise FileError(f"{where}: expected {_known()}; found an object with {keys_shown(record)}. Rename its fields.")
    return shape.read(record, where)


def known_keys() -> frozenset[str]:
    """All fields that any shape reads."""
    return frozenset(key for shape in SHAPES for key in shape.keys) | {"input", "system"}


def refuse_columns(columns: Sequence[str], where: str) -> FileError:
    """The error for a table whose columns have no known shape."""
    return FileError(f"{where}: expected the columns of {_known()}; found {keys_shown(columns)}. Rename its columns.")


def keys_shown(keys: Mapping[str, Any] | Sequence[str]) -> str:
    """The keys of a record, for a message: "id, title and 7 more"."""
    names = [str(key)[:40] for key in keys]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "no fields") + more


def _known() -> str:
    *others, last = (shape.shown for shape in SHAPES)
    return f"{', '.join(others)} or {last}"


def _chat(record: Mapping[str, Any], where: str) -> Chat:
    messages = _messages(record["messages"], where, "messages")
    return Chat(_filled(messages), tools=_tools(record, where), empty=_empty(messages))


def _tools(record: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    tools = record.get("tools")
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(each, Mapping) for each in tools):
        raise FileError(f'{where}: expected "tools" to be a list of objects.')
    return tuple(tools)


def _share_gpt(record: Mapping[str, Any], where: str) -> Chat:
    messages = _messages(record["conversations"], where, "conversations")
    system = record.get("system")
    if isinstance(system, str) and system and not any(each["role"] == "system" for each in messages):
        messages = ({"role": "system", "content": system}, *messages)
    return Chat(_filled(messages), empty=_empty(messages))


def _alpaca(record: Mapping[str, Any], where: str) -> Chat:
    instruction, output = _string(record, "instruction", where), _string(record, "output", where)
    further = _string(record, "input", where) if record.get("input") is not None else ""
    asked = "\n\n".join(part for part in (instruction, further) if part.strip())
    chat = ({"role": "user", "content": asked}, {"role": "assistant", "content": output})
    messages = tuple(each for each in chat if each["content"])
    return Chat(messages, "\n\n".join(part for part in (asked, output) if part))


def _prompt(record: Mapping[str, Any], where: str) -> Chat | Completed:
    """A completion follows its prompt without a gap; both may be lists of messages too, as in TRL."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        asked, answered = _messages(prompt, where, "prompt"), _messages(completion, where, "completion")
        told = _filled(asked)
        return Chat((*told, *_filled(answered)), given=len(told), empty=_empty((*asked, *answered)))
    return Completed(_string(record, "prompt", where), _string(record, "completion", where))


def _text(record: Mapping[str, Any], where: str) -> str:
    return _string(record, "text", where)


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise FileError(f'{where}: expected "{key}" to be a string, found {_kind(value)}.')
    return value


def _messages(messages: Any, where: str, key: str) -> tuple[Mapping[str, Any], ...]:
    """The messages of a chat under the roles of chat templates."""
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        raise FileError(f'{where}: expected "{key}" to be a list of {{"role": ..., "content": ...}}.')
    return tuple(_message(each, where, key, number) for number, each in enumerate(messages, start=1))


def _filled(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The messages that say or call something."""
    return tuple(each for each in messages if _says(each))


def _empty(messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The messages of user and assistant that say nothing, see `Chat`. An empty one of the system means none."""
    return tuple(
        f"message {number} ({each['role']})"
        for number, each in enumerate(messages, start=1)
        if each["role"] in ("user", "assistant") and not _says(each)
    )


def _says(message: Mapping[str, Any]) -> bool:
    """Whether a message has content, or calls a tool."""
    return bool(message.get("content") or message.get("tool_calls"))


def _message(message: Mapping[str, Any], where: str, key: str, number: int) -> Mapping[str, Any]:
    """One message; {"from", "value"} becomes {"role", "content"}."""
    here = f"{where}, message {number}"
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise FileError(
            f'{here}: expected "{key}" to be a list of {{"role": ..., "content": ...}}, found a message with '
            f"{keys_shown(message)}."
        )
    if role.lower() not in _ROLES:
        raise FileError(f"{here}: unknown role {role[:40]!r}; known are {', '.join(_ROLES)}.")
    content = message.get("content", message.get("value"))
    if not isinstance(content, str | list | None):
        raise FileError(f"{here}: expected its content to be a string, found {_kind(content)}.")
    further = {name: value for name, value in message.items() if name not in ("from", "value") and value is not None}
    return {**further, "role": _ROLES[role.lower()], "content": content}


def _kind(value: Any) -> str:
    kinds = {
        list: "a list",
        dict: "an object",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


SHAPES: tuple[Shape, ...] = (
    Shape(("messages",), '{"messages": [...]}', _chat),
    Shape(("text",), '{"text": ...}', _text),
    Shape(("conversations",), '{"conversations": [...]} (ShareGPT)', _share_gpt),
    Shape(("instruction", "output"), '{"instruction", "input", "output"} (Alpaca)', _alpaca),
    Shape(("prompt", "completion"), '{"prompt", "completion"}', _prompt),
)

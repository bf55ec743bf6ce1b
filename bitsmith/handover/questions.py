"""What a runtime is asked about a model, and our own answers, from the file alone and with nothing rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsmith.errors import BitsmithError, UnsupportedError
from bitsmith.handover.subject import Subject

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import Tokenizer
    from bitsmith.runtime.language_model import LanguageModel

TOP = 20  # tokens whose log probabilities are compared at each position
NEW = 24  # tokens that are generated
_USER = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
_TEXT = "The capital of France is a city on the river Seine, and it has been the largest town of the country for"
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Tokyo"], "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
CALL: dict[str, Any] = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
}
CHATS: tuple[Mapping[str, Any], ...] = (
    {"name": "one message", "messages": [_USER]},
    {
        "name": "system and turns",
        "messages": [
            {"role": "system", "content": "You answer briefly."},
            _USER,
            {"role": "assistant", "content": "Paris is the capital of France."},
            {"role": "user", "content": "And of\n\nJapan? "},
        ],
    },
    {"name": "tools", "messages": [_USER], "tools": [WEATHER]},
    {
        "name": "a tool call and its result",
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "What is the weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"celsius": 21}'},
        ],
    },
)


@dataclass(frozen=True)
class Rendered:
    """A conversation by a chat template; `refused` says why there is none."""

    text: str = ""
    ids: tuple[int, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Answers:
    """Our answers.

    chats: by the conversation's name; empty if the model has no template
    ids: tokens of a prompt and of its likeliest continuation
    first: number of tokens of the prompt
    logs: log probabilities after positions first - 1 and on: float32 [positions, vocab]
    ends: tokens that end a generation
    call: the text of `CALL` as the model writes it; "" if the template does not say
    """

    chats: Mapping[str, Rendered]
    ids: tuple[int, ...]
    first: int
    logs: np.ndarray
    ends: frozenset[int]
    call: str = ""

    @property
    def calls_tools(self) -> bool:
        """Whether the chat template tells the model of tools."""
        plain, told = (self.chats.get(name, Rendered()) for name in ("one message", "tools"))
        return bool(told.text) and told.text != plain.text


def our_answers(subject: Subject, model: LanguageModel) -> Answers:
    """Answers of a loaded model. Raises UsageError if its context is too short."""
    tokenizer = subject.tokenizer
    chats = {}
    if tokenizer.has_chat_template:
        chats = {chat["name"]: rendered(tokenizer, chat["messages"], chat.get("tools")) for chat in CHATS}
    prompt = list(next((each.ids for each in chats.values() if each.ids), ()))
    if not prompt:
        prompt = tokenizer.encode(_TEXT, add_special=True)
    ids, first = list(prompt), len(prompt)
    logs: np.ndarray | None = None
    for _ in range(NEW):
        logs = log_probabilities(model, ids, first)
        ids.append(int(logs[-1].argmax()))
        if ids[-1] in tokenizer.end_ids:
            break
    logs = log_probabilities(model, ids, first)
    return Answers(chats, tuple(ids), first, logs, tokenizer.end_ids, written_call(tokenizer) if chats else "")


def written_call(tokenizer: Tokenizer) -> str:
    """The text of `CALL` as the chat template writes it into an answer; "" if it does not."""
    user, said = CHATS[3]["messages"][0], CHATS[3]["messages"][1]
    try:
        before = tokenizer.chat([user], tools=[WEATHER])
        whole = tokenizer.chat([user, said], tools=[WEATHER], add_generation_prompt=False)
    except UnsupportedError:
        return ""
    text = whole.removeprefix(before) if whole.startswith(before) else ""
    ends = [tokenizer.vocabulary.tokens[token] for token in tokenizer.end_ids]
    at = min((text.index(end) for end in ends if end and end in text), default=len(text))
    text = text[:at].strip()
    return text if CALL["function"]["name"] in text else ""


def rendered(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> Rendered:
    """A conversation by the model's own template."""
    try:
        text = tokenizer.chat(messages, tools=tools)
    except UnsupportedError as error:
        return Rendered(refused=error.message)
    return Rendered(text, tuple(tokenizer.encode(text, add_special=False, parse_special=True)))


def log_probabilities(model: LanguageModel, ids: Sequence[int], first: int) -> np.ndarray:
    """Log probabilities of the next token after positions first - 1 and on: float32 [positions, vocab]."""
    logits = model.logits(np.array([ids]), first=first - 1)[0].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)


def loaded(subject: Subject) -> LanguageModel:
    """The model, computed with nothing rounded beside the file's own codes. Raises as `load_language_model`."""
    from bitsmith.runtime.load import load_language_model

    try:
        return load_language_model(subject.checkpoint, kernel="exact")
    except BitsmithError:
        return load_language_model(subject.checkpoint, kernel="torch")

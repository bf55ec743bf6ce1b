"""Training examples: token ids of records, chats and texts, and which of them the model learns to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitsmith.errors import BitsmithError, FileError, UnsupportedError
from bitsmith.reference.texts import calibration_text
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.texts.records import Chat, Completed, read_parts
from bitsmith.texts.sources import PlainText, Texts, open_texts

MOST_TOKENS = 1 << 28  # tokens of all examples together: 1.3 GB of memory
_REPORT_EVERY = 256  # records


class Encoder(Protocol):
    """What examples need of a tokenizer; see `bitsmith.models.tokenizer.Tokenizer`."""

    @property
    def bos(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def eos(self) -> int | None: ...
    def encode(self, text: str, *, add_special: bool) -> Sequence[int]: ...
    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> Sequence[int]: ...


@dataclass(frozen=True)
class Example:
    """One sequence.

    ids: int32 [tokens]
    learned: bool [tokens], the tokens that count in the loss; never the first, which nothing comes before
    """

    ids: np.ndarray
    learned: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Examples:
    """All examples of a data set.

    sha256: of the bytes of its files
    records: number of records, chats and texts
    cut: number of examples that were longer than the context and lost their end
    dropped: number of those that were left out, since nothing to learn stood within the context
    """

    name: str
    sha256: str
    examples: tuple[Example, ...]
    records: int
    cut: int = 0
    dropped: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.examples))

    @property
    def learned(self) -> int:
        """Number of tokens that count in the loss."""
        return sum(int(each.learned.sum()) for each in self.examples)


@dataclass
class _Gathered:
    """What was read so far."""

    context: int
    examples: list[Example] = field(default_factory=list)
    tokens: int = 0
    records: int = 0
    cut: int = 0
    dropped: int = 0

    def add(self, example: Example) -> None:
        """Add an example, cut to the context."""
        if len(example) > self.context:
            example = Example(example.ids[: self.context], example.learned[: self.context])
            self.cut += 1
            if not example.learned.any():
                self.dropped += 1
                return
        self.examples.append(example)
        self.tokens += len(example)


def read_examples(
    names: Sequence[str | Path], tokenizer: Encoder, *, context: int, option: str, report: Report = silent
) -> Examples:
    """The examples of some files.

    names: see `bitsmith.texts.sources.open_texts`
    context: tokens of an example, at most. Of a plain text that is longer, windows of so many tokens are made; chats
        and completions lose their end and are counted
    option: the option that gave the names, for messages
    What is learned: of a chat every answer of the assistant, with the token that ends it; of a prompt with a completion
    the completion; of a text everything. Raises FileError for a broken line, an unknown role, a chat without an answer
    (with file and line), and for data without anything to learn; UnsupportedError for a chat where the model has no
    template.
    """
    texts = open_texts(names, option=option, built_in=calibration_text)
    found = _Gathered(context)
    for where, content in _contents(texts, report):
        found.records += 1
        try:
            for example in _examples(content, tokenizer, context, where):
                found.add(example)
        except BitsmithError as error:
            raise error if str(where) in error.message else error.at(where) from error
        if found.tokens > MOST_TOKENS:
            raise FileError(f"{where}: the data has more than {MOST_TOKENS:,} tokens; give a part of it.")
    if not found.examples:
        raise FileError(
            f"{option}: {texts.name} has nothing to learn within a context of {context} tokens "
            f"({found.records} records, {found.dropped} too long); give other data or a longer --context."
        )
    return Examples(
        texts.name, texts.sha256(), tuple(found.examples), found.records, cut=found.cut, dropped=found.dropped
    )


def _contents(texts: Texts, report: Report) -> Iterator[tuple[str, str | Chat | Completed]]:
    for source in texts.sources:
        if isinstance(source, PlainText):
            yield source.where, source.content
            continue
        seen = 0
        for seen, entry in enumerate(source.read(source.path), start=1):
            if seen % _REPORT_EVERY == 1:
                report(Progress("read", min(entry.done, entry.total), entry.total, "of the text", source.name))
            yield entry.where, read_parts(entry.record, entry.where)
        if not seen:
            raise FileError(f"{source.path}: the file holds no records; give a file with text.")


def _examples(content: str | Chat | Completed, tokenizer: Encoder, context: int, where: str) -> Iterator[Example]:
    if isinstance(content, str):
        yield from _of_text(content, tokenizer, context, where)
    elif isinstance(content, Completed):
        yield _completed(content, tokenizer, where)
    elif content.plain is not None and not tokenizer.has_chat_template:
        yield _completed(_plain(content, where), tokenizer, where)
    else:
        yield from _of_chat(content, tokenizer, where)


def _plain(chat: Chat, where: str) -> Completed:
    """An instruction and its output as plain text. Raises FileError where one of them is missing."""
    if [message["role"] for message in chat.messages] != ["user", "assistant"]:
        raise FileError(f"{where}: expected an instruction and an output with content; fill both, or delete the line.")
    return Completed(f"{chat.messages[0]['content']}\n\n", chat.messages[1]["content"])


def _of_text(text: str, tokenizer: Encoder, context: int, where: str) -> Iterator[Example]:
    if not text.strip():
        raise FileError(f"{where}: the text is empty; delete the line.")
    ids = _ended(tokenizer.encode(text, add_special=True), tokenizer)
    for start in range(0, len(ids), context):
        window = ids[start : start + context]
        if len(window) > 1:
            yield _example(window, [(1, len(window))])


def _completed(content: Completed, tokenizer: Encoder, where: str) -> Example:
    if not content.completion.strip():
        raise FileError(f"{where}: the completion is empty, so there is nothing to learn; delete the line.")
    start = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    prompt = [*start, *tokenizer.encode(content.prompt, add_special=False)]
    whole = [*start, *tokenizer.encode(content.prompt + content.completion, add_special=False)]
    ids = _ended(whole, tokenizer)
    return _example(ids, [(_common(prompt, whole), len(ids))])


def _ended(ids: Sequence[int], tokenizer: Encoder) -> list[int]:
    """The ids with the end token behind them, if the model has one."""
    end = tokenizer.eos
    return [*ids] if end is None or (ids and ids[-1] == end) else [*ids, end]


def _of_chat(chat: Chat, tokenizer: Encoder, where: str) -> Iterator[Example]:
    """One example with all answers; or one for each, where the template writes earlier answers otherwise.

    Templates of reasoning models leave the thoughts out of all answers but the last.
    """
    chat = replace(chat, messages=tuple(_text_alone(each, where) for each in chat.messages))
    answers = [
        number
        for number, message in enumerate(chat.messages)
        if message["role"] == "assistant" and number >= chat.given
    ]
    if not answers:
        what = "the chat has no messages" if not chat.messages else "the chat has no answer of the assistant"
        raise FileError(f"{where}: {what}, so there is nothing to learn; delete the line.")
    if chat.empty:
        raise FileError(f"{where}: {chat.empty[0]} has no content; fill it, or delete the line.")
    encode: Callable[..., Sequence[int]] = tokenizer.encode_chat
    if chat.tools:
        encode = partial(encode, tools=chat.tools)
    _check_calls(chat, tokenizer, where)
    whole = list(encode(chat.messages, add_generation_prompt=False))
    spans, turns = [], []
    for number in answers:
        upto = list(encode(chat.messages[: number + 1], add_generation_prompt=False))
        first = _answer_start(chat, number, upto, encode, where)
        last = _answer_end(upto, first, tokenizer.end_ids)
        spans.append((first, last))
        turns.append(upto)
    if all(_common(upto[:last], whole) == last for upto, (_, last) in zip(turns, spans, strict=True)):
        yield _example(whole[: spans[-1][1]], spans)
        return
    for upto, (first, last) in zip(turns, spans, strict=True):
        yield _example(upto[:last], [(first, last)])


def _text_alone(message: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A message whose content is a string; parts of text become one. Raises FileError for other parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if not isinstance(part, Mapping):
            raise FileError(
                f"{where}: a message of the {message['role']} has a part that is no object; expected "
                '{"type": "text", "text": "..."}, or one string in place of the list.'
            )
        kind = part.get("type")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise FileError(
                f"{where}: a message of the {message['role']} has a part of type {str(kind)[:40]!r}; only text is "
                "learned. Take the part out, or delete the line."
            )
    return {**message, "content": "".join(part["text"] for part in content)}


def _check_calls(chat: Chat, tokenizer: Encoder, where: str) -> None:
    """Raise UnsupportedError where the template leaves out tools or calls, so that others would be learned."""
    calls = [number for number, message in enumerate(chat.messages) if message.get("tool_calls")]
    if not calls and not chat.tools:
        return
    encode: Callable[..., Sequence[int]] = tokenizer.encode_chat
    bare = [{key: value for key, value in each.items() if key != "tool_calls"} for each in chat.messages]
    written = list(encode(chat.messages, add_generation_prompt=False, tools=chat.tools or None))
    found = (("tools", chat.tools, chat.messages, None), ("tool_calls", calls, bare, chat.tools or None))
    for name, there, messages, tools in found:
        if there and list(encode(messages, add_generation_prompt=False, tools=tools)) == written:
            raise UnsupportedError(
                f"{where}: the model's chat template does not write {name}, so they cannot be learned; delete the "
                "line, or choose a model whose template has tools."
            )


def _answer_start(chat: Chat, number: int, upto: list[int], encode: Callable[..., Sequence[int]], where: str) -> int:
    """Where an answer begins in the ids up to its end: behind what the template writes before an answer."""
    before = chat.messages[:number]
    if not before:
        return 1
    asked = list(encode(before, add_generation_prompt=False))
    first = _common(list(encode(before, add_generation_prompt=True)), upto)
    if first < len(asked) and _common(asked, upto) < len(asked):
        raise UnsupportedError(
            f"{where}: the model's chat template writes the messages before answer {number + 1} otherwise once the "
            "answer follows, so where it begins cannot be told; give prompts with completions."
        )
    return first


def _answer_end(ids: Sequence[int], first: int, ends: frozenset[int]) -> int:
    """Behind the last end token of an answer; a line break that the template adds is not learned."""
    for at in range(len(ids) - 1, first - 1, -1):
        if ids[at] in ends:
            return at + 1
    return len(ids)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of ids at the start that are the same."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _example(ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> Example:
    learned = np.zeros(len(ids), bool)
    for first, last in spans:
        learned[max(first, 1) : last] = True
    return Example(np.array(ids, np.int32), learned)

"""Token ids of texts."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bitsmith.errors import BitsmithError
from bitsmith.system.progress import Report, silent
from bitsmith.texts.sources import Document, Texts

MOST_TOKENS = 1 << 24  # tokens of all texts together; what follows is not read


class Encoder(Protocol):
    """What reading texts needs of a tokenizer.

    adds_bos: True if `encode` with add_special puts the start token `bos` before the text
    has_chat_template: False if `encode_chat` cannot write a chat
    """

    @property
    def adds_bos(self) -> bool: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def has_chat_template(self) -> bool: ...
    def encode(self, text: str, *, add_special: bool) -> Sequence[int]: ...
    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> Sequence[int]: ...


@dataclass(frozen=True)
class TextTokens:
    """Token ids of texts.

    ids: int64 [tokens]; documents follow each other without gaps, each with its own start token if the tokenizer adds
        one
    starts: int64 [documents], the place in `ids` where each document begins
    notes: notes for the user
    """

    ids: np.ndarray
    starts: np.ndarray
    notes: tuple[str, ...] = ()


def encode_texts(texts: Texts, tokenizer: Encoder, *, most: int = MOST_TOKENS, report: Report = silent) -> TextTokens:
    """Token ids of all documents, up to `most`; a note says where more text follows.

    Chats go through the model's chat template. Raises FileError for a damaged file and for records of an unknown shape,
    UnsupportedError for a chat where the model has no template or its template refuses it; all name the place.
    """
    ids, starts = array("i"), array("q")
    for document in texts.documents(report):
        if len(ids) < most:
            starts.append(len(ids))
            ids.extend(_encoded(document, tokenizer))
        if len(ids) > most:
            note = f"{texts.name}: only the first {most:,} tokens are used; the text goes on in {document.where}"
            return TextTokens(np.array(ids[:most], np.int64), np.array(starts, np.int64), (note,))
    return TextTokens(np.array(ids, np.int64), np.array(starts, np.int64))


def _encoded(document: Document, tokenizer: Encoder) -> Sequence[int]:
    content = document.content
    try:
        if isinstance(content, str):
            return tokenizer.encode(content, add_special=True)
        if content.plain is not None and not tokenizer.has_chat_template:
            return tokenizer.encode(content.plain, add_special=True)
        return tokenizer.encode_chat(content.messages, add_generation_prompt=False)
    except BitsmithError as error:
        raise error.at(document.where) from error

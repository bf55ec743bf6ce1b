"""Tokenizers: text to ids and back, for Hugging Face folders and GGUF files; and chat templates."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from bitsmith.containers.hf_folder import read_text
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.chat import TemplateRenderer
from bitsmith.models.tokenizer.encoders import Encoder, LibraryEncoder, LimitedEncoder, LimitedEncoders, panics_named
from bitsmith.models.tokenizer.from_gguf import encodes_in_linear_time, to_tokenizers, vocabulary_from_gguf
from bitsmith.models.tokenizer.from_hf import unpadded
from bitsmith.models.tokenizer.hf_files import read_files
from bitsmith.models.tokenizer.pipeline import is_linear
from bitsmith.models.tokenizer.spelled import Renamed, marked, renamed, unused_guard
from bitsmith.models.tokenizer.vocabulary import TokenType, Vocabulary, piece

__all__ = ["StreamDecoder", "Tokenizer", "Vocabulary"]


@dataclass(frozen=True)
class Source:
    """The text of a tokenizer.json, the file, and whether encoding with it takes linear time (see `pipeline`)."""

    text: str
    origin: str
    linear: bool


class Tokenizer:
    """Encodes and decodes text, with special tokens and the chat template.

    vocabulary: the tokenizer as data
    source: a tokenizer.json for encoding, without its post-processor; None to encode by the vocabulary
    """

    def __init__(self, vocabulary: Vocabulary, source: Source | None = None) -> None:
        self.vocabulary = vocabulary
        self._source = source
        self._kept: Renamed | None = None

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """The tokenizer of a Hugging Face folder, from tokenizer.json if there is one, else from tokenizer.model.

        Raises FileError, UnsupportedError.
        """
        files = read_files(path)
        source = None
        if files.tokenizer:
            file = path / "tokenizer.json"
            source = Source(read_text(file), str(file), is_linear(files.tokenizer))
        return cls(unpadded(files), source)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, pre: str | None = None) -> Tokenizer:
        """The tokenizer of a GGUF file. It encodes like llama.cpp.

        metadata: plain values by key
        pre: name of a pre-tokenizer in place of the file's
        Raises FileError, UnsupportedError.
        """
        return cls(vocabulary_from_gguf(metadata, pre=pre))

    def encode(self, text: str, *, add_special: bool, parse_special: bool = False) -> list[int]:
        """Ids of a text.

        add_special: add the start and end tokens, if the model wants them
        parse_special: control tokens that the text spells out become their ids; if False they are plain text, which is
            right for text from a user
        Raises FileError for a text that is not Unicode.
        """
        encoder = self._parsing if parse_special else self._plain
        ids: list[int] = encoder.encode(_unicode(text), add_special_tokens=False).ids
        if not add_special:
            return ids
        special = self.vocabulary.special
        start = [special["bos"]] if self.vocabulary.add_bos else []
        return [*start, *ids, *([special["eos"]] if self.vocabulary.add_eos else [])]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD. Control tokens are left out unless `special`."""
        decoder = StreamDecoder(self, special=special)
        return "".join(decoder.feed(token) for token in ids) + decoder.finish()

    def stream(self, *, special: bool = False, continues: bool = False) -> StreamDecoder:
        """A decoder for ids that come one by one.

        continues: True if the ids continue a text, so that a leading space stays
        """
        return StreamDecoder(self, special=special, continues=continues)

    @cached_property
    def longest(self) -> int:
        """Most bytes that one token stands for, at least 16: normalizers take blanks away."""
        return max(16, *(len(token.encode("utf-8", "replace")) for token in self.vocabulary.tokens))

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocabulary.tokens)

    @property
    def bos(self) -> int | None:
        """The start token's id."""
        return self.vocabulary.special.get("bos")

    @property
    def eos(self) -> int | None:
        """The end token's id."""
        return self.vocabulary.special.get("eos")

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return self.vocabulary.end_ids

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants the start token before a text."""
        return self.vocabulary.add_bos

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return self.vocabulary.chat_template is not None

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
    ) -> str:
        """The text of a conversation, by the model's chat template. Encode it with `parse_special`.

        Most templates write the start token. If the result begins with it, encode with `add_special` false; see
        `encode_chat`.

        template: another template: the name of one of the model's templates, or a template's text

        Raises UnsupportedError if the model has no template or the template refuses the messages, FileError for a
        broken template.
        """
        named = self.vocabulary.chat_templates
        text = named.get(template, template) if template is not None else self.vocabulary.chat_template
        if text is None:
            more = f" (it has others, by name: {', '.join(sorted(named))})" if named else ""
            raise UnsupportedError(
                f"this model has no chat template{more}, so it may not be a chat model; continue a text with `run`, or "
                "give a template"
            )
        roles = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        special = {f"{role}_token": self.vocabulary.token(role) for role in roles}
        return self._templates.render(
            text, messages, special=special, add_generation_prompt=add_generation_prompt, tools=tools
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        begun: str = "",
    ) -> list[int]:
        """Ids of a conversation: the text of `chat`, with exactly one start token if the model wants one.

        begun: text behind it, the beginning of the answer
        Special tokens are those that the template writes. Where a message spells one out, it is plain text.
        """
        written = template or self.vocabulary.chat_template or ""
        last = {"role": "assistant", "content": begun}
        given, markers = marked([*messages, last], self._special, avoid=written + "".join(self._special))
        messages = given[:-1]
        text = self.chat(messages, add_generation_prompt=add_generation_prompt, tools=tools, template=template)
        text += given[-1]["content"]
        if markers:
            ids = self._renamed(text + "".join(self._special)).ids(_unicode(text), markers)
        else:
            ids = self.encode(text, add_special=False, parse_special=True)
        if self.adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    @cached_property
    def _templates(self) -> TemplateRenderer:
        return TemplateRenderer()

    @cached_property
    def _parsing(self) -> Encoder:
        return self._encoder(plain=False)

    @cached_property
    def _plain(self) -> Encoder:
        return self._encoder(plain=True)

    @cached_property
    def _limited(self) -> LimitedEncoders:
        """The encoders of a tokenizer that may take more than linear time."""
        return LimitedEncoders(self._whole.text, self._whole.origin)

    @cached_property
    def _whole(self) -> Source:
        """The tokenizer as a tokenizer.json."""
        if self._source is not None:
            return self._source
        text = to_tokenizers(self.vocabulary).to_str()
        return Source(text, "the tokenizer", encodes_in_linear_time(self.vocabulary))

    @cached_property
    def _special(self) -> frozenset[str]:
        """Texts of special tokens."""
        vocabulary = self.vocabulary
        kinds = (TokenType.CONTROL, TokenType.UNKNOWN)
        control = {text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in kinds}
        if self._source is None:
            added = to_tokenizers(vocabulary).get_added_tokens_decoder().values()
            return frozenset(token.content for token in added if token.special or token.content in control)
        listed = json.loads(self._source.text).get("added_tokens", [])
        return frozenset(entry["content"] for entry in listed if entry.get("special") or entry["content"] in control)

    def _renamed(self, text: str) -> Renamed:
        """An encoder whose names of special tokens do not occur in `text`; usually the one of the last call."""
        if self._kept is None or self._kept.guard in text:
            guard = unused_guard(text)
            whole, names, others = renamed(self._whole.text, self._special, guard)
            source = replace(self._whole, text=whole)
            encoder = LibraryEncoder(_loaded(source), source.origin) if source.linear else _limited(source)
            self._kept = Renamed(encoder, guard, names, others)
        return self._kept

    def _encoder(self, *, plain: bool) -> Encoder:
        source = self._source
        if not (encodes_in_linear_time(self.vocabulary) if source is None else source.linear):
            return LimitedEncoder(self._limited, plain)
        origin = "the tokenizer" if source is None else source.origin
        with panics_named(origin):
            encoder = to_tokenizers(self.vocabulary) if source is None else _loaded(source)
        encoder.encode_special_tokens = plain
        return LibraryEncoder(encoder, origin)


def _limited(source: Source) -> Encoder:
    return LimitedEncoder(LimitedEncoders(source.text, source.origin), plain=False)


def _loaded(source: Source) -> tokenizers.Tokenizer:
    try:
        encoder = tokenizers.Tokenizer.from_str(source.text)
    except Exception as error:  # the library has no narrower exception
        raise FileError(f"{source.origin}: the tokenizers library cannot load it: {error}") from error
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _unicode(text: str) -> str:
    """The text. Raises FileError where it is not Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FileError(f"the text is not Unicode: a lone surrogate at character {error.start}") from error
    return text


class StreamDecoder:
    """Decodes ids one by one. The bytes of a character are kept until it is complete."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.vocabulary.add_space_prefix and not continues

    def feed(self, token: int) -> str:
        """The text that this token completes. Empty for control tokens and while a character is incomplete.

        Raises FileError for an id outside the vocabulary.
        """
        vocabulary = self._tokenizer.vocabulary
        if not 0 <= token < len(vocabulary.tokens):
            raise FileError(f"token {token} is outside the vocabulary of {len(vocabulary.tokens)} tokens")
        if not self._special and vocabulary.types[token] in (TokenType.CONTROL, TokenType.UNKNOWN):
            return ""
        data = piece(vocabulary, token)
        if self._strip and data:
            self._strip = False
            if vocabulary.types[token] == TokenType.NORMAL:
                data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character, else empty."""
        return self._utf8.decode(b"", final=True)

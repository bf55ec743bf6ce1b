"""Vocabulary: a tokenizer as data, from a Hugging Face folder or from GGUF keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cache

from bitsmith.errors import FileError


class TokenType(IntEnum):
    """Token types of `tokenizer.ggml.token_type` (GGUF specification)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Everything that encoding and decoding need.

    model: as in `tokenizer.ggml.model`: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE with byte fallback), or
        "gemma4" (the same with merges)
    tokens: texts by id, as in GGUF: byte-level tokens in the GPT-2 byte alphabet, SentencePiece's with "▁" for a space,
        added tokens as in the text; all are different
    types: type of each token
    scores: score of each token, the highest merges first; empty for "gpt2"
    merges: "left right", in the order of merging; empty for "llama"
    pre: llama.cpp's name of the pre-tokenizer ("llama-bpe"); "default" for the others
    special: ids by role ("bos", "eos", "eot", "eom", "unk", "sep", "pad", "cls", "mask", "fim_pre", ...)
    end_ids: tokens that end a generation
    add_bos, add_eos: True if encoding adds this token
    add_space_prefix: True if a text is encoded with a space before it ("llama" only)
    chat_template: the default chat template
    chat_templates: further chat templates by name
    """

    model: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = "default"
    special: Mapping[str, int] = field(default_factory=dict)
    end_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    chat_template: str | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tokens) > MOST_TOKENS:
            raise FileError(
                f"the vocabulary has {len(self.tokens):,} tokens, more than {MOST_TOKENS:,}; take the tokenizer from "
                "its source"
            )
        check_tokens(self.tokens, self.types)
        for role, token in self.special.items():
            if not 0 <= token < len(self.tokens):
                raise FileError(f"the {role} token has id {token}, but the vocabulary ends at {len(self.tokens) - 1}")

    def token(self, role: str) -> str:
        """Text of the special token with this role; empty if there is none."""
        return self.tokens[self.special[role]] if role in self.special else ""

    def padded(self, size: int) -> Vocabulary:
        """The vocabulary with `[PAD<id>]` tokens of type UNUSED up to `size`, as in llama.cpp's converter.

        Raises FileError if there are more tokens than `size`.
        """
        have = len(self.tokens)
        if size > MOST_TOKENS:
            raise FileError(
                f"the model has an embedding of {size:,} tokens, more than {MOST_TOKENS:,}; check vocab_size"
            )
        if have > size:
            raise FileError(
                f"the tokenizer has {have} tokens (the last is {self.tokens[-1]!r}), but the model has an embedding "
                f"for {size} only; take the tokenizer that belongs to these weights, or resize the embedding"
            )
        return replace(
            self,
            tokens=self.tokens + tuple(pad_token(i) for i in range(have, size)),
            types=self.types + (int(TokenType.UNUSED),) * (size - have),
            scores=self.scores + (PAD_SCORE,) * (size - have) if self.scores else (),
        )


MOST_TOKENS = 1 << 20  # the largest known vocabulary has 262,144
PAD_SCORE = -10000.0
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def pad_token(token: int) -> str:
    """Text for a row of the embedding that has no token."""
    return f"[PAD{token}]"


def check_tokens(tokens: Sequence[str], types: Sequence[int]) -> None:
    """Raise FileError if two tokens have the same text, a token is not Unicode, or a BYTE token is not like `<0xFF>`.

    llama.cpp aborts on a file with two equal tokens.
    """
    byte = int(TokenType.BYTE)
    spelled = all(_BYTE.fullmatch(text) for text, kind in zip(tokens, types, strict=True) if kind == byte)
    if spelled and len(set(tokens)) == len(tokens) and _is_unicode("".join(tokens)):
        return  # the usual case, faster than a check of each token
    seen: dict[str, int] = {}
    for token, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if seen.setdefault(text, token) != token:
            raise FileError(f"tokens {seen[text]} and {token} of the vocabulary have the same text, {text!r}")
        if kind == TokenType.BYTE and not _BYTE.fullmatch(text):
            raise FileError(
                f"token {token} of the vocabulary stands for a byte: expected a text like <0xFF>, not {text!r}"
            )
        if not _is_unicode(text):
            raise FileError(f"token {token} of the vocabulary is not UTF-8: {text!r}; convert the model again")


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates. They stand for bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# llama.cpp always ends a generation at tokens with these texts (build 11434).
END_TEXTS = frozenset(
    [
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    ]
)
# llama.cpp finds by these texts the fill-in-the-middle tokens that also end a generation: padding, repository, file.
FIM_END_TEXTS = (
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)


def end_ids_by_text(tokens: Sequence[str]) -> frozenset[int]:
    """Ids of the tokens that end a generation in llama.cpp because of their text.

    If a vocabulary has <|return|> and <|call|> (harmony), or <|calls|> and <|flush|>, its <|end|> ends a message, not a
    generation. If it has <|tool_response>, its </s> is an ordinary token.
    """
    looked_for = END_TEXTS.union(*FIM_END_TEXTS)
    found = {text: token for token, text in enumerate(tokens) if text in looked_for}
    for texts in FIM_END_TEXTS:
        for text in [text for text in texts if text in found][1:]:
            del found[text]
    calls = "<|call|>" in found or "<|calls|>" in found
    if calls and ("<|return|>" in found or "<|flush|>" in found):
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    return frozenset(found.values())


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte (Radford et al. 2019): Latin-1 if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(0x100 + len(table) - len(printable))
    return table


@cache
def _bytes_by_character() -> dict[str, int]:
    return {character: byte for byte, character in byte_alphabet().items()}


def piece(vocabulary: Vocabulary, token: int) -> bytes:
    """The bytes of a token; empty for an UNUSED token."""
    text, kind = vocabulary.tokens[token], vocabulary.types[token]
    if kind == TokenType.UNUSED:
        return b""
    if kind == TokenType.BYTE:
        return bytes([int(text[3:5], 16)])
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
        return text.encode("utf-8")
    if vocabulary.model != "gpt2":
        return text.replace("▁", " ").encode("utf-8")
    to_byte = _bytes_by_character()
    return bytes(to_byte[c] for c in text) if all(c in to_byte for c in text) else text.encode("utf-8")

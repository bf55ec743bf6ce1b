"""Encoders of text: the tokenizers library, here or, where a file's steps are not known, in a process with limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tokenizers

from bitsmith.errors import FileError
from bitsmith.system.limited import LimitedProcess, LimitError

_TASK = Path(__file__).with_name("encode_task.py")
_MEMORY = 1 << 30
_CHARACTERS_PER_SECOND = 500_000  # of a slow machine; the library does some millions


class Ids(Protocol):
    """What encoding gives."""

    @property
    def ids(self) -> list[int]: ...


class Encoder(Protocol):
    """Encodes a text. Raises FileError if the tokenizer cannot."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Ids: ...


_LONG = 4096  # characters that take some milliseconds


@dataclass(frozen=True)
class _Encoding:
    ids: list[int]


class LibraryEncoder:
    """An encoder of the tokenizers library, whose panics become errors. origin: the file, for errors"""

    def __init__(self, encoder: tokenizers.Tokenizer, origin: str) -> None:
        self._encoder, self._origin = encoder, origin

    def encode(self, text: str, *, add_special_tokens: bool) -> Ids:
        """See `Encoder`."""
        with panics_named(self._origin):
            if len(text) > _LONG:  # without offsets; and other threads of Python go on
                (found,) = self._encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            else:
                found = self._encoder.encode(text, add_special_tokens=add_special_tokens)
            ids: Ids = found
            return ids


class LimitedEncoders:
    """Encodes with a tokenizer.json whose steps are not known, within limits.

    source: its text
    origin: the file, for errors
    seconds: for a short text; long ones get more
    """

    def __init__(self, source: str, origin: str, *, seconds: float = 10.0) -> None:
        self._origin = origin
        self._process = LimitedProcess(
            _TASK, packages=("tokenizers",), memory=_MEMORY, seconds=seconds, first={"source": source}
        )

    def ids(self, text: str, *, plain: bool) -> list[int]:
        """Ids of a text. plain: control tokens in it are text. Raises FileError if the tokenizer passes a limit."""
        try:
            reply = self._process.ask({"text": text, "plain": plain}, more_seconds=len(text) / _CHARACTERS_PER_SECOND)
        except LimitError as excess:
            raise FileError(
                f"{self._origin}: encoding a text of {len(text):,} characters {excess}, and was stopped; take the "
                "tokenizer of the original model"
            ) from excess
        if "failed" in reply:
            raise FileError(f"{self._origin}: the tokenizers library fails with it: {reply['failed']}")
        found: list[int] = reply["ids"]
        return found


class LimitedEncoder:
    """One of the two encoders in a process with limits. plain: see `LimitedEncoders.ids`"""

    def __init__(self, encoders: LimitedEncoders, plain: bool) -> None:
        self._encoders, self._plain = encoders, plain

    def encode(self, text: str, *, add_special_tokens: bool) -> Ids:
        """See `Encoder`."""
        assert not add_special_tokens
        return _Encoding(self._encoders.ids(text, plain=self._plain))


@contextmanager
def panics_named(origin: str) -> Iterator[None]:
    """Turn a panic of the tokenizers library into a FileError. A panic is no Exception, and has no name to import."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise FileError(
            f"{origin}: the tokenizers library breaks off with it: {error}; take the tokenizer of the original model"
        ) from None

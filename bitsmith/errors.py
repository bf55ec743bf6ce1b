"""The exceptions that bitsmith raises on purpose, and how messages name options.

A message is one paragraph. It names the file or tensor, what was expected, what was found and what to do.
The command line prints it on stderr and exits with `exit_code`. Names in it come from files, so its text is made
printable (`printable`), and what is very long is cut in the middle.

In the sources a message names an option as a flag: `--force`, or with a value `--threads=4`, `--out='my file'` (see
`quoted`). The command line says "--threads 4". Python's users read the keyword: "threads=4", "force=True". Complete
commands stand between backticks and stay as they are: `bitsmith inspect --verify`.
"""

from __future__ import annotations

import re
import shlex
from typing import Self

_LONGEST_WORD = 400  # characters of a path or a name in a message
_LONGEST_MESSAGE = 6000
# controls (C0, DEL, C1), marks that change the direction of text, separators of lines, and halves of characters
_ORDERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_MENTION = re.compile(
    r"`[^`]*`|(?<![\w/-])--(?P<flag>[a-z][a-z-]*[a-z])(?:=(?P<value>(?:'[^']*'|\"'\")+|[^\s'\"]*[^\s'\".,:;!?)]))?"
)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
# Keywords that are not the flag with underscores: of a flag with a value, and of a flag without
_KEYWORDS = {"cache": "cache_type", "for": "runtime", "format": "formats", "rank": "adapter_rank", "rule": "rules"}
_KEYWORDS |= {"name": "model_name", "shard-size": "max_shard_size"}
_SWITCHED = ("force", "requantize", "pure", "dry-run", "verify", "calibration-all-experts")
_SWITCHES = {flag: f"{flag.replace('-', '_')}=True" for flag in _SWITCHED}
_SWITCHES |= {"tokenizer": "tokenizer=True", "sym": "symmetric=True", "asym": "symmetric=False"}
_LISTS = frozenset({"format", "keep", "rule", "training"})  # these keywords take a list


def in_flags(text: str) -> str:
    """A message as the command line says it: "--threads 4", "--force"."""
    return text.flags if isinstance(text, Words) else _MENTION.sub(_as_flag, text)


def in_python(text: str) -> str:
    """A message as the library says it: "threads=4", "force=True"."""
    return text if isinstance(text, Words) else _MENTION.sub(_as_keyword, text)


def keyword(flag: str) -> str:
    """The library's keyword for a flag: "cache_type" for "--cache", "symmetric" for "--asym"."""
    name = flag.removeprefix("--")
    return _SWITCHES[name].partition("=")[0] if name in _SWITCHES else _KEYWORDS.get(name, name.replace("-", "_"))


def quoted(value: object) -> str:
    """A value of an option in a message, in quotes if it needs them."""
    return shlex.quote(str(value))


def _as_flag(found: re.Match[str]) -> str:
    return found[0].replace("=", " ", 1) if found["value"] is not None else found[0]


def _as_keyword(found: re.Match[str]) -> str:
    flag, value = found["flag"], found["value"]
    if flag is None:  # a command between backticks
        return found[0]
    if value is None:
        return _SWITCHES.get(flag, f"{keyword(flag)}=")
    plain = "".join(shlex.split(value)) if value.startswith(("'", '"')) else value
    shown = plain if _NUMBER.fullmatch(plain) else '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{keyword(flag)}={f'[{shown}]' if flag in _LISTS else shown}"


class Words(str):
    """A note or warning in a result. It is the library's wording; `flags` is that of the command line."""

    flags: str

    def __new__(cls, text: str) -> Self:
        """Make both from a message that names options as flags."""
        words = super().__new__(cls, in_python(text))
        words.flags = in_flags(text)
        return words

    def __getnewargs__(self) -> tuple[str]:
        """For copies."""
        return (str(self),)


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""The text without anything that gives orders to a terminal.

    Control characters, marks that change the direction of text, and lone surrogates become escapes, as Python writes
    them: \x1b, \u202e.

    keep: control characters that stay as they are
    """
    return _ORDERS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def _safe(text: str) -> str:
    """A message for a terminal or a log."""
    return _shortened(
        _LONG_WORD.sub(lambda word: _shortened(word[0], _LONGEST_WORD), printable(text)), _LONGEST_MESSAGE
    )


def _shortened(text: str, limit: int) -> str:
    """The text, or its two ends if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}...({len(text):,} characters)...{text[-limit // 4 :]}"


class BitsmithError(Exception):
    """Base of all errors raised on purpose. `str()` gives the library's wording.

    message: the text as written in the sources, for `in_flags` and for messages that quote it
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(in_python(message))
        self.message = message

    def __str__(self) -> str:
        """The message, safe to print on a terminal or into a log."""
        return _safe(super().__str__())

    @property
    def flags(self) -> str:
        """The message as the command line says it, safe in the same way."""
        return _safe(in_flags(self.message))

    def at(self, where: object) -> Self:
        """The same error with the place before it: a file and line, a tensor, an option."""
        return type(self)(f"{where}: {self.message}")


class UsageError(BitsmithError):
    """The call itself is wrong: an unknown name, an option out of range, options that exclude each other."""

    exit_code = 2


class FileError(BitsmithError):
    """A file is missing, damaged, lies about itself, or cannot be written."""


class UnsupportedError(BitsmithError):
    """The input is valid, but bitsmith does not support it."""


class ResourceError(BitsmithError):
    """The machine has too little memory for what was asked. Nothing is wrong with the call or with the files."""


class TensorError(BitsmithError):
    """A named tensor holds values that cannot be used (NaN, Inf, overflow).

    tensor: its name, which the message begins with; "" if only the message has it
    """

    def __init__(self, message: str = "", *, tensor: str = "") -> None:
        super().__init__(f"{tensor}: {message}" if tensor else message)
        self.tensor = tensor

    def renamed(self, name: str) -> TensorError:
        """The same error under another name of the tensor."""
        return TensorError(self.message.removeprefix(f"{self.tensor}: "), tensor=name)

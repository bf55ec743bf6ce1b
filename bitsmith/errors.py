"""The exceptions that bitsmith raises on purpose.

A message is one paragraph. It names the file or tensor, what was expected, what was found and what to do.
The command line prints it on stderr and exits with `exit_code`. Names in it come from files, so its text is made
printable (`printable`), and what is very long is cut in the middle.
"""

import re

_LONGEST_WORD = 400  # characters of a path or a name in a message
_LONGEST_MESSAGE = 6000
# controls (C0, DEL, C1), marks that change the direction of text, separators of lines, and halves of characters
_ORDERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


class BitsmithError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, safe to print on a terminal or into a log."""
        text = _LONG_WORD.sub(lambda word: _shortened(word[0], _LONGEST_WORD), printable(super().__str__()))
        return _shortened(text, _LONGEST_MESSAGE)


class UsageError(BitsmithError):
    """The call itself is wrong: an unknown name, an option out of range, options that exclude each other."""

    exit_code = 2


class FileError(BitsmithError):
    """A file is missing, damaged, lies about itself, or cannot be written."""


class UnsupportedError(BitsmithError):
    """The input is valid, but bitsmith does not support it."""


class TensorError(BitsmithError):
    """A named tensor holds values that cannot be used (NaN, Inf, overflow)."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""The text without anything that gives orders to a terminal.

    Control characters, marks that change the direction of text, and lone surrogates become escapes, as Python writes
    them: \x1b, \u202e.

    keep: control characters that stay as they are
    """
    return _ORDERS.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def _shortened(text: str, limit: int) -> str:
    """The text, or its two ends if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}...({len(text):,} characters)...{text[-limit // 4 :]}"

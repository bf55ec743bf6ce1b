"""Text from a model or a file, made safe for a terminal."""

from __future__ import annotations

import re

# C0 and C1 control characters (escape sequences begin with one), marks and overrides of the writing direction, which
# show a text in another order than it has, and lone surrogates, which no terminal can show
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""The text with control characters, bidi controls and lone surrogates shown as escapes (\x1b, \u202e).

    keep: characters that stay as they are
    """

    def shown(match: re.Match[str]) -> str:
        character = match.group()
        if character in keep:
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _UNSAFE.sub(shown, text)

"""Writes generated text to standard output as it comes, and its figures in words."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bitsmith.errors import printable

if TYPE_CHECKING:
    from bitsmith.runtime.text_stream import GenerationStats

_KEPT = "\n\t\u061c\u200e\u200f"  # the last three mark a direction in right-to-left text, and override nothing


class TerminalText:
    """Pieces of a text, made safe for a terminal: control characters are shown as escapes, or left out in line ends."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        r"""What to print. A \r at the end of a piece is held back: the next piece tells whether it ends a line."""
        text = self._held + piece
        self._held = "\r" if text.endswith("\r") else ""
        return printable(text.removesuffix("\r").replace("\r\n", "\n"), keep=_KEPT)

    def finish(self) -> str:
        """The rest."""
        return printable(self._held)


def write_pieces(pieces: Iterable[str]) -> None:
    """Write pieces of a text to standard output, each at once, and a line's end behind the last.

    On a terminal, control characters are shown as escapes; elsewhere the text stays as it is.
    """
    safe = TerminalText() if sys.stdout.isatty() else None
    last = ""
    try:
        for piece in pieces:
            last = _write(piece if safe is None else safe.feed(piece)) or last
    finally:
        last = _write("" if safe is None else safe.finish()) or last
        _write("" if last.endswith("\n") else "\n")


def _write(text: str) -> str:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
    return text


def figures(stats: GenerationStats) -> str:
    """Tokens and tokens a second of a prompt and of the text generated for it, in one line."""
    kept = f" ({stats.reused_tokens} known)" if stats.reused_tokens else ""
    return (
        f"prompt: {stats.prompt_tokens} tokens{kept}{_rate(stats.prompt_rate)}; "
        f"generation: {stats.generated_tokens} tokens{_rate(stats.generation_rate)}"
    )


def _rate(rate: float | None) -> str:
    return "" if rate is None else f", {rate:.1f} tokens/s"


def cut(stats: GenerationStats) -> str | None:
    """Why a text ends before its end; None where the model ended it, or where it was stopped."""
    if stats.reason == "length":
        return f"cut at {stats.generated_tokens} tokens; -n sets how many"
    return "cut: the context is full" if stats.reason == "context" else None

"""The text that `run` is asked: from its options, a file and standard input."""

from __future__ import annotations

import io
import os
import select
import sys
from pathlib import Path

from bitsmith.errors import FileError

LONGEST = 16 << 20  # bytes of a prompt from one place; the largest contexts hold less
_PATIENCE = 2.0  # seconds without a byte, after which a line says what is waited for


def prompt_text(prompt: str | None, file: Path | None) -> str | None:
    """The prompt, the file and standard input, in this order, those that there are, a line's end between them.

    Standard input is read where it is no terminal, and for "-" in place of a prompt or a file. None: there is nothing
    of the three. Raises FileError for what is not UTF-8 or cannot be read.
    """
    parts = [] if prompt in (None, "-") else [argument_text(prompt, "--prompt")]
    if file is not None and str(file) != "-":
        parts.append(_decoded(_read(file), str(file)))
    asked = prompt == "-" or str(file) == "-"
    if asked or not sys.stdin.isatty():
        if not asked and parts:
            _say_what_is_awaited()
        parts.append(_standard_input())
    return "\n".join(part for part in parts if part) if parts else None


def argument_text(text: str, flag: str) -> str:
    """The text of an argument, which is UTF-8 whatever the locale says. Raises FileError where it is not."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{flag}: byte {error.start} is not UTF-8.") from error


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return _bounded(opened.read(LONGEST + 1), str(file))
    except OSError as error:
        raise FileError(f"{file}: {error.strerror or error}; -f takes a text file.") from error


def _bounded(data: bytes, origin: str) -> bytes:
    if len(data) > LONGEST:
        raise FileError(f"{origin} has more than {LONGEST >> 20} MiB, which no model reads as one prompt; shorten it.")
    return data


def _standard_input() -> str:
    if isinstance(sys.stdin, io.TextIOWrapper):
        return _decoded(_bounded(sys.stdin.buffer.read(LONGEST + 1), "standard input"), "standard input")
    return sys.stdin.read().removesuffix("\n")


def _decoded(data: bytes, origin: str) -> str:
    r"""The text, without a byte order mark and without the last line's end, every other of which is \n."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{origin}: byte {error.start} is not UTF-8; convert it to UTF-8 first.") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


def _say_what_is_awaited() -> None:
    """A line where a prompt was given and nothing comes from standard input: perhaps nobody meant it to be read."""
    if isinstance(sys.stdin, io.TextIOWrapper) and not select.select([sys.stdin], [], [], _PATIENCE)[0]:
        sys.stderr.write("Waiting for standard input, too; add < /dev/null to go without it.\n")
        sys.stderr.flush()

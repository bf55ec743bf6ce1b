"""Where the messages of `bitsmith chat` come from: a terminal with editing and history, or lines of standard input."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.cli.prompt import LONGEST
from bitsmith.errors import FileError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "
Read = Callable[[], str]  # the next message; EOFError at the end, KeyboardInterrupt for Ctrl-C


def on_terminal() -> bool:
    """Whether a person types: standard input is a terminal, and so is what they look at."""
    return sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())


def line_reader() -> Read:
    """Messages are lines of standard input, of any length; bytes that are not UTF-8 become U+FFFD."""
    lines = _lines()

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    return read


def _lines() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        while line := sys.stdin.buffer.readline(LONGEST + 1):
            if len(line) > LONGEST:
                raise FileError(
                    f"standard input: a line has more than {LONGEST >> 20} MiB, which no model reads as one message."
                )
            yield line.decode("utf-8", "replace").rstrip("\r\n")
    else:
        for text in sys.stdin:
            yield text.rstrip("\r\n")


def terminal_reader(*, history: Path | None, commands: tuple[str, ...]) -> Read:
    """Messages are typed, with editing, history and multi-line input; a paste of several lines is one message.

    history: file of earlier messages, made readable by its owner alone; None keeps them for this session only
    commands: completed by Tab
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        history=_history(history),
        key_bindings=_bindings(),
        multiline=True,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        prompt_continuation="  ",
        output=create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
    )

    def read() -> str:
        return _unicode(session.prompt(PROMPT))

    return read


def _bindings() -> KeyBindings:
    """Enter sends. Alt-Enter, and Enter behind a backslash, begin another line."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def history_file() -> Path:
    """The user's file of earlier messages (XDG Base Directory Specification: state)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "bitsmith" / "chat_history"


def _history(file: Path | None) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class SafeHistory(FileHistory):
        """A file of messages. Where it cannot be written, messages are kept for this session alone."""

        def store_string(self, string: str) -> None:
            try:
                super().store_string(_unicode(string))
            except OSError as error:
                _note(f"(the history is not kept: {error.filename or file}: {error.strerror})")

    if file is None:
        return InMemoryHistory()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        _note(f"(the history is not kept: {error.filename}: {error.strerror})")
        return InMemoryHistory()
    return SafeHistory(str(file))


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _unicode(text: str) -> str:
    """The text with U+FFFD in place of bytes that were not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

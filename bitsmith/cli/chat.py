"""`bitsmith chat`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from bitsmith.cli.command import command, config_options, model_argument_or_option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import LoadingOptions, no_short_t, token_limit
from bitsmith.cli.prompt import argument_text
from bitsmith.models.ends import NO_END_TOKEN
from bitsmith.runtime.sampling import Sampling
from bitsmith.system.options import option

if TYPE_CHECKING:
    from collections.abc import Callable

    from bitsmith.cli.chat_input import Read
    from bitsmith.cli.chat_session import ChatSession

_LEAVING = "Ctrl-D or /exit leaves."


@dataclass(frozen=True)
class ChatOptions:
    """How `chat` talks."""

    system: str | None = option(None, group="Options", help="A system message to begin with.")
    max_tokens: int = option(
        1024, "-n", group="Options", help="Tokens of an answer, at most; -1: as many as the context holds."
    )
    history: bool = option(
        True,
        "--history/--no-history",
        group="Options",
        help="Keep typed messages for the next session, in a file that only you can read.",
    )


@command("chat")
@model_argument_or_option("The model to talk to: any model name or file with a chat template.")
@config_options(ChatOptions, "options")
@config_options(Sampling, "sampling")
@config_options(LoadingOptions, "loading")
@no_short_t
def chat(model: str, options: ChatOptions, sampling: Sampling, loading: LoadingOptions) -> None:
    """Talk with a model through its own chat template; /help lists what can be typed.

    Where standard input is no terminal, every line of it is a message. When the context is full, the model no longer
    sees the oldest exchanges (it always sees the system message), and a line says so.
    """
    from bitsmith import api
    from bitsmith.cli import chat_input
    from bitsmith.cli.chat_session import COMMANDS, ChatSession
    from bitsmith.cli.drawing import stderr
    from bitsmith.runtime.conversation import Conversation

    limit = token_limit(options.max_tokens)
    note_missing_core()
    loaded = api.load(model, **vars(loading))
    system = argument_text(options.system or "", "--system")
    conversation = Conversation(loaded, system=system, max_tokens=limit, sampling=sampling)
    console = stderr()

    def note(text: str) -> None:
        console.print(text, style="dim", markup=False, soft_wrap=True)

    if not loaded.tokenizer.end_ids:
        note(f"Note: {NO_END_TOKEN}")
    session = ChatSession(conversation, note)
    if chat_input.on_terminal():
        signal.signal(signal.SIGTERM, _terminated)  # an interrupt would only stop the answer
        note(f"{model}, context of {loaded.config.context:,} tokens. /help lists commands and keys. {_LEAVING}")
        history = chat_input.history_file() if options.history else None
        _talk(session, chat_input.terminal_reader(history=history, commands=tuple(COMMANDS)), note)
    else:
        _listen(session, chat_input.line_reader())


def _talk(session: ChatSession, read: Read, note: Callable[[str], None]) -> None:
    """Answer what a person types. Ctrl-C stops an answer, or empties the line."""
    while session.open:
        try:
            text = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            note(f"({_LEAVING})")
            continue
        try:
            with _heard(session):
                session.take(text)
        except KeyboardInterrupt:
            note("(stopped)")


@contextmanager
def _heard(session: ChatSession) -> Iterator[None]:
    """Tell the session of Ctrl-C, too: an exception that is raised within a callback can be lost."""

    def stop(signum: int, frame: FrameType | None) -> None:
        session.stopped = True
        raise KeyboardInterrupt

    session.stopped = False
    usual = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _listen(session: ChatSession, read: Read) -> None:
    """Answer what other programs write. An interrupt ends the session."""
    while session.open:
        try:
            text = read()
        except EOFError:
            return
        session.take(text)


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)

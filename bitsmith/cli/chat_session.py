"""What `bitsmith chat` does with a message: answer it, or carry out a command."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.cli.speaking import cut, figures, write_pieces
from bitsmith.errors import BitsmithError
from bitsmith.runtime.conversation import Message

if TYPE_CHECKING:
    from bitsmith.runtime.conversation import Conversation

KEYS = """\
Enter sends. Alt-Enter, or a backslash at the end of a line, begins another line. A paste is one message.
Arrow up and down: earlier messages. Ctrl-R searches them. Ctrl-C stops an answer. Ctrl-D leaves.
A message that begins with a slash: type a space before it."""
_COMMAND = re.compile(r"/[A-Za-z?]*(?!\S)")  # "/etc/passwd" is a message


@dataclass(frozen=True)
class _Command:
    argument: str
    help: str
    act: Callable[[ChatSession, str], None]


class ChatSession:
    """A conversation, and the commands that change it.

    note: shows a line that is not the model's
    open: becomes False when the user leaves
    stopped: whether the user has stopped the answer that is being written
    """

    def __init__(self, conversation: Conversation, note: Callable[[str], None]) -> None:
        self._conversation = conversation
        self._note = note
        self._saved: set[Path] = set()  # files of this session, which /save may replace
        self.open = True
        self.stopped = False

    def take(self, text: str) -> None:
        """Answer a message, or carry out a command. Errors are shown, and the conversation goes on.

        Raises KeyboardInterrupt where the user stops an answer; what was said so far stays.
        """
        name = _COMMAND.match(text)
        try:
            if name is None and text.strip():
                self._answer(self._conversation.say(text.strip()))
            elif name is not None:
                self._command(name.group(), text[name.end() :].strip())
        except BitsmithError as error:
            self._note(f"Error: {error.flags}")

    def _command(self, name: str, argument: str) -> None:
        if name in COMMANDS:
            COMMANDS[name].act(self, argument)
            return
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        self._note(f"unknown command {name}.{meant} /help lists all.")

    def _answer(self, stream: Generator[str]) -> None:
        try:
            write_pieces(self._until_stopped(stream))
        finally:
            stream.close()
            for note in self._conversation.take_notes():
                self._note(note)
        stats = self._conversation.stats
        assert stats is not None
        if stats.reason == "end" and stats.generated_tokens == 1:
            self._note("(the model ended its answer at once; /regen asks again)")
        why = cut(stats)
        if why:
            self._note(f"({why})")

    def _until_stopped(self, stream: Generator[str]) -> Iterator[str]:
        """The pieces of an answer. Raises KeyboardInterrupt behind the piece during which the user stopped it."""
        for piece in stream:
            yield piece
            if self.stopped:
                raise KeyboardInterrupt

    def help(self, _argument: str) -> None:
        """List commands and keys."""
        width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            self._note(f"{f'{name} {command.argument}':<{width}}  {command.help}")
        self._note(KEYS)

    def regen(self, _argument: str) -> None:
        """Another answer to the last message."""
        self._answer(self._conversation.regenerate())

    def undo(self, _argument: str) -> None:
        """Take the last message and its answer back."""
        taken = " ".join(self._conversation.undo().split())
        self._note(f"taken back: {taken[:60]}{'...' if len(taken) > 60 else ''}")

    def system(self, argument: str) -> None:
        """Show or set the system message."""
        if argument:
            self._conversation.set_system(None if argument in ('""', "''") else argument)
        found = self._conversation.system
        self._note("no system message" if found is None else f"system message: {found}")

    def save(self, argument: str) -> None:
        """Write the conversation to a file."""
        if not argument:
            self._note("give a file: /save talk.md, talk.json or talk.jsonl")
            return
        path = Path(os.path.expanduser(argument)).absolute()
        if path.exists() and path not in self._saved:
            self._note(f"{path} exists; /save another name")
            return
        from bitsmith.containers.output import write_file

        text = _written(self._conversation.messages, path.suffix.lower())
        try:
            # for its owner alone
            write_file(path, text.encode("utf-8", "replace"), force=path in self._saved, mode=0o600)
        except BitsmithError as error:
            self._note(f"Error: {error.flags}")
            return
        self._saved.add(path)
        self._note(f"saved {path}")

    def stats(self, _argument: str) -> None:
        """Show counts and speeds."""
        conversation = self._conversation
        self._note(f"{len(conversation.messages)} messages; context of {conversation.context} tokens")
        if conversation.stats is not None:
            self._note(f"last answer: {figures(conversation.stats)}")

    def reset(self, _argument: str) -> None:
        """Forget everything but the system message."""
        self._conversation.reset()
        self._note("forgotten")

    def leave(self, _argument: str) -> None:
        """End the session."""
        self.open = False


COMMANDS = {
    "/help": _Command("", "this list", ChatSession.help),
    "/regen": _Command("", "another answer to the last message", ChatSession.regen),
    "/undo": _Command("", "take the last message and its answer back", ChatSession.undo),
    "/system": _Command("TEXT", 'set the system message; without TEXT show it; "" takes it away', ChatSession.system),
    "/save": _Command("FILE", "write the conversation, as text, .json or .jsonl", ChatSession.save),
    "/stats": _Command("", "tokens and speed of the last answer", ChatSession.stats),
    "/reset": _Command("", "forget everything but the system message", ChatSession.reset),
    "/exit": _Command("", "leave", ChatSession.leave),
}


def _written(messages: list[Message], suffix: str) -> str:
    """The conversation as JSON, as one line of JSON (which --calibration reads), or as text with headings."""
    if suffix == ".json":
        return json.dumps(messages, indent=2, ensure_ascii=False) + "\n"
    if suffix == ".jsonl":
        return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
    return "\n".join(f"## {message['role']}\n\n{message['content']}\n" for message in messages)

"""`bitsmith chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, model_argument, option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import runtime, sampling

if TYPE_CHECKING:
    from bitsmith.runtime.conversation import Conversation

_HELP = "Commands: /reset forgets the conversation, /exit leaves (so does Ctrl-D); Ctrl-C stops an answer."


@command("chat")
@model_argument("The model to talk to: any model name or file with a chat template.")
@option("--system", help="A system message to begin with.")
@option(
    "-n", "--max-tokens", "tokens", type=click.IntRange(1), default=512, metavar="N", help="Tokens per answer, at most."
)
@sampling
@runtime
def chat(
    model: str,
    system: str | None,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    threads: int | None,
    kernel: str | None,
    cache: str,
    revision: str | None,
) -> None:
    """Talk with a model through its own chat template.

    When the context is full, the oldest exchanges are forgotten (never the system message), and a line says so.
    """
    from bitsmith import api
    from bitsmith.cli.drawing import stderr
    from bitsmith.runtime.conversation import Conversation
    from bitsmith.runtime.generate import Sampling

    note_missing_core()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    loaded = api.load(model, threads=threads, kernel=kernel, cache_type=cache, revision=revision)
    conversation = Conversation(loaded, system=system, max_tokens=tokens, sampling=sampling)
    loaded.chat_ids([{"role": "user", "content": ""}])  # where there is no template, that is said before anything else
    console = stderr()
    interactive = sys.stdin.isatty()
    if interactive:
        console.print(f"{model}, context of {loaded.config.context} tokens. {_HELP}", style="dim", markup=False)
    while True:
        line = _read_line(interactive)
        if line is None or line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            console.print("forgotten", style="dim")
        elif line.startswith("/"):
            console.print(f"unknown command {line}. {_HELP}", style="dim", markup=False)
        elif line:
            _answer(conversation, line)


def _read_line(interactive: bool) -> str | None:
    """One line of the user; None at the end of input."""
    try:
        return input("> " if interactive else "").strip()
    except (EOFError, KeyboardInterrupt):
        if interactive:
            sys.stderr.write("\n")
        return None


def _answer(conversation: Conversation, line: str) -> None:
    from bitsmith.cli.drawing import stderr
    from bitsmith.errors import UsageError, in_flags

    stream = conversation.say(line)
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        stderr().print("\n(stopped)", style="dim")
    except UsageError as error:  # too long a message; the conversation goes on
        stderr().print(f"Error: {in_flags(error.message)}", markup=False)
    finally:
        stream.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    for note in conversation.take_notes():
        stderr().print(note, style="dim", markup=False)

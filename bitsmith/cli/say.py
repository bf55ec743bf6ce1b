"""What all commands print in the same way: warnings, and results as JSON. Both name options as flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import click

from bitsmith.errors import Words, in_flags


class Interrupted(click.Abort):
    """An interruption, with what the user must know of it.

    note: a sentence without its full stop
    always: whether it is said beside what a step has noted of the interruption, and not only where none did
    """

    def __init__(self, note: str, *, always: bool = False) -> None:
        super().__init__()
        self.note = note
        self.always = always


def warn(warnings: Iterable[str], *, before: str = "Warning") -> None:
    """One line on stderr for each warning."""
    from bitsmith.cli.drawing import clean, stderr

    style = "yellow" if before == "Warning" else None
    for warning in warnings:
        stderr().print(f"{before}: {clean(in_flags(warning))}", style=style, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """A result as JSON on stdout."""
    sys.stdout.flush()
    click.echo(json.dumps(_as_flags(value), indent=2))


def _as_flags(value: Any) -> Any:
    """The same values, with every note in the command line's wording."""
    if isinstance(value, Mapping):
        return {key: _as_flags(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_flags(each) for each in value]
    return in_flags(value) if isinstance(value, Words) else value

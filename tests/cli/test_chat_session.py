"""An answer stops behind the piece during which the user said so, although the exception was lost."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from bitsmith.cli.chat_session import ChatSession


def test_a_stop_that_was_lost_is_heeded(capsys: pytest.CaptureFixture[str]) -> None:
    def say(text: str) -> Generator[str]:
        yield "one "
        session.stopped = True  # what the handler of the signal sets, whose exception a callback has swallowed
        yield "two "
        yield "three"

    conversation: Any = SimpleNamespace(say=say, take_notes=list, stats=None)
    session = ChatSession(conversation, print)
    with pytest.raises(KeyboardInterrupt):
        session.take("count")
    assert capsys.readouterr().out == "one two \n"

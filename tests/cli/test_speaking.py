"""Generated text as a terminal and as a pipe get it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from bitsmith.cli.speaking import cut, figures, write_pieces
from bitsmith.models.tokenizer import StreamDecoder
from bitsmith.runtime.text_stream import GenerationStats
from tests.cli.command import Command

PIECES = [
    "a\x1b",
    "[31mred",
    "\x9b0m\x07",
    "\u202eflip",
    "tab\tline\r",
    "\nnext\r",
    "over",
    "\u200f\u05d0",
    "\ud800",
    "\r",
]
SHOWN = "a\\x1b[31mred\\x9b0m\\x07\\u202efliptab\tline\nnext\\rover\u200f\u05d0\\ud800\\r\n"


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Tty())
    write_pieces(PIECES)
    assert sys.stdout.getvalue() == SHOWN  # type: ignore[attr-defined]


def test_a_pipe_gets_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    write_pieces(PIECES)
    assert sys.stdout.getvalue() == "".join(PIECES) + "\n"  # type: ignore[attr-defined]
    write_pieces(["ends\n"])
    assert sys.stdout.getvalue().endswith("\r\nends\n")  # type: ignore[attr-defined]


def test_run_writes_through_it(monkeypatch: pytest.MonkeyPatch, bitsmith_command: Command, tiny: Path) -> None:
    monkeypatch.setattr(StreamDecoder, "feed", lambda self, token: "\x1b")
    assert bitsmith_command("run", tiny, "-p", "a", "-n", 3, "--seed", 1).out == "\x1b\x1b\x1b\n"
    screen = Tty()
    monkeypatch.setattr(sys, "stdout", screen)
    assert bitsmith_command("run", tiny, "-p", "a", "-n", 3, "--seed", 1).code == 0
    assert screen.getvalue() == "\\x1b\\x1b\\x1b\n"


def test_figures_in_words() -> None:
    stats = GenerationStats(10, 4, 3, 2.0, 1.0, "end")
    assert figures(stats) == "prompt: 10 tokens (4 known), 3.0 tokens/s; generation: 3 tokens, 2.0 tokens/s"
    assert figures(GenerationStats(10, 0, 1, 2.0)) == "prompt: 10 tokens, 5.0 tokens/s; generation: 1 tokens"
    assert cut(stats) is None
    assert cut(GenerationStats(10, 0, 3, reason="length")) == "cut at 3 tokens; -n sets how many"
    assert cut(GenerationStats(10, 0, 3, reason="context")) == "cut: the context is full"

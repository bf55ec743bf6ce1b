"""Text from files gives no orders to a terminal, wherever it is printed."""

from __future__ import annotations

import logging

import pytest

from bitsmith.errors import BitsmithError, FileError, printable


def test_controls_become_escapes() -> None:
    assert printable("a\x1b[31m\x07\x9b\x7f") == "a\\x1b[31m\\x07\\x9b\\x7f"
    assert printable("left\u202eright\u2066\ud800") == "left\\u202eright\\u2066\\ud800"


def test_ordinary_text_stays() -> None:
    text = "Zoë, 日本語, 👩‍👩‍👧, ‹tab›\tand\nline"
    assert printable(text) == text
    assert printable("a\tb\nc\rd", keep="") == "a\\tb\\nc\\rd"


def test_errors_are_printable_wherever_they_are_caught(caplog: pytest.LogCaptureFixture) -> None:
    error = FileError("m.gguf: architecture '\x1b]0;owned\x07' is unknown")
    assert str(error) == "m.gguf: architecture '\\x1b]0;owned\\x07' is unknown"
    logging.getLogger("someone").error("failed: %s", error)
    assert "\x1b" not in caplog.text


def test_long_names_are_cut_in_the_middle() -> None:
    text = str(BitsmithError(f"tensor {'n' * 100_000}end is unknown; take another file"))
    assert len(text) < 600
    assert "(100,003 characters)" in text
    assert text.startswith("tensor nnn")
    assert text.endswith("nnnend is unknown; take another file")


def test_long_messages_are_bounded() -> None:
    assert len(str(BitsmithError("n " * 100_000))) < 6000

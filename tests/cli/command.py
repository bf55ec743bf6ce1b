"""The command line, called in process."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest

from bitsmith.cli import main


@dataclass(frozen=True)
class Result:
    """What a command printed and its exit code."""

    code: int
    out: str
    err: str


class Command:
    """Call it with the words after `bitsmith`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *words: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["bitsmith", *map(str, words)])
        if not isinstance(sys.stdin, io.StringIO | io.TextIOWrapper):  # a test gives one; otherwise nothing is piped in
            self._monkeypatch.setattr(sys, "stdin", io.StringIO())
        self._capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        printed = self._capfd.readouterr()
        return Result(code, printed.out, printed.err)

    def fails(self, code: int, *words: object) -> str:
        """Run, expect this exit code and a one-paragraph error without a traceback; returns it on one line."""
        result = self(*words)
        assert result.code == code, result
        assert "Traceback" not in result.err
        assert result.err.strip()
        assert "\n\n" not in result.err.strip()
        return " ".join(result.err.split())

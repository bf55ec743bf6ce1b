"""The command line: parses arguments, draws progress, prints results. All work happens below it."""

from __future__ import annotations

from bitsmith.cli.main import main

__all__ = ["main"]

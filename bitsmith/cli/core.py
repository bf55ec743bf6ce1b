"""The note that a command is slow for want of the C++ core."""

from __future__ import annotations

import sys


def note_missing_core() -> None:
    """One line on stderr where this installation has no core; nothing where BITSMITH_NATIVE=0 wants none."""
    from bitsmith import native

    why = native.missing()
    if why is not None:
        sys.stderr.write(f"Note: {why}\n")

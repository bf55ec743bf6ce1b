"""The note that a command is slow for want of the C++ core."""

from __future__ import annotations

import os
import sys


def note_missing_core() -> None:
    """One line on stderr where this installation has no core; nothing where BITSMITH_NATIVE=0 wants none."""
    from bitsmith import native

    if native.core() is None and os.environ.get("BITSMITH_NATIVE") != "0":
        sys.stderr.write(f"Note: {native.missing()}, so this is slow; {native.cure()}\n")

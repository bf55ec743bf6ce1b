"""The note that a command is slow for want of the C++ core."""

from __future__ import annotations

import os
import sys


def note_missing_core() -> None:
    """One line on stderr where this installation has no core; nothing where BITSMITH_CORE=0 wants none."""
    from bitsmith.system import core

    if core.core() is None and os.environ.get("BITSMITH_CORE") != "0":
        sys.stderr.write(f"Note: {core.missing()}, so this is slow; {core.install_hint()}\n")

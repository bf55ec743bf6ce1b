"""The command line: parses arguments, draws progress, prints results. All work happens below it."""

from __future__ import annotations

import sys

try:
    from bitsmith.cli.starting import quiet_start

    with quiet_start():
        from bitsmith.cli.main import main
except KeyboardInterrupt:
    sys.stderr.write("Interrupted.\n")
    sys.exit(130)

__all__ = ["main"]

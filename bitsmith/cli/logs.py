"""`--log-level`: the library's log on stderr."""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(self.format(record) + "\n")


def log_to_stderr(level: str) -> None:
    """Write the library's log from this level on ("debug", ...)."""
    logger = logging.getLogger("bitsmith")
    for handler in [each for each in logger.handlers if isinstance(each, _Stderr)]:
        logger.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())

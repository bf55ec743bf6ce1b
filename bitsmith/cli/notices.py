"""What the library decided for the user, as a line on stderr: which file of a hub repository was taken,
that torch computes a model, and that an adapter's base is not known."""

from __future__ import annotations

import logging
import sys

from bitsmith.errors import printable

_LOGGERS = ("bitsmith.models.adapter", "bitsmith.models.hub", "bitsmith.runtime.load.choice")


class _Note(logging.Handler):
    """Writes to the stderr of the moment, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        sys.stderr.write(f"Note: {printable(record.getMessage(), keep='')}\n")


def hide_notices() -> None:
    """Show no notes, for commands that were asked to be quiet."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def show_notices() -> None:
    """Show the warnings of these loggers as notes, once, whatever the level of the log is."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        if not any(isinstance(handler, _Note) for handler in logger.handlers):
            logger.addHandler(_Note(logging.WARNING))
            logger.propagate = False

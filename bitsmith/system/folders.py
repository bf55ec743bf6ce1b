"""The user's folders for what bitsmith keeps (XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """For what can be made again. It need not exist."""
    return _base("XDG_CACHE_HOME", ".cache") / "bitsmith"


def data_folder() -> Path:
    """For what should stay. It need not exist."""
    return _base("XDG_DATA_HOME", ".local/share") / "bitsmith"


def _base(variable: str, usual: str) -> Path:
    named = os.environ.get(variable, "")
    return Path(named) if os.path.isabs(named) else Path.home() / usual

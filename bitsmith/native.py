"""The C++ core, where this installation has it."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


@cache
def core() -> ModuleType | None:
    """The extension module; None where it was not built, cannot be loaded, or BITSMITH_NATIVE=0 turns it off."""
    return _loaded()[0]


def missing() -> str | None:
    """Why there is no core, for a note to the user; None where there is one."""
    return _loaded()[1]


@cache
def _loaded() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("BITSMITH_NATIVE") == "0":
        return None, "the C++ core is turned off (BITSMITH_NATIVE=0)"
    try:
        from bitsmith import _core
    except ImportError as error:
        return None, f"this installation has no C++ core ({error})"
    return _core, None

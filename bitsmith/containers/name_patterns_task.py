"""The task of the process that matches patterns from files (see `bitsmith.system.limited`)."""

from __future__ import annotations

import re
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """For each of "names", the number of the first of "patterns" that matches its beginning; -1 for none.

    The answer is in "first"; or "invalid" is the number of a pattern that is none, and "reason" says why.
    """
    compiled = []
    for number, pattern in enumerate(request["patterns"]):
        try:
            compiled.append(re.compile(pattern))
        except (re.error, OverflowError) as error:
            return {"invalid": number, "reason": str(error)[:200]}
    return {"first": [_first(compiled, name) for name in request["names"]]}


def _first(patterns: list[re.Pattern[str]], name: str) -> int:
    return next((number for number, pattern in enumerate(patterns) if pattern.match(name)), -1)

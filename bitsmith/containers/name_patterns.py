"""Patterns in a model's configuration that choose modules by name. They are not trusted.

A pattern can take years on a name of 40 letters, and no rule tells such patterns from others. They are therefore
matched by Python's own engine, as the tools that wrote them do, in a process with a limit of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitsmith.errors import FileError
from bitsmith.system.limited import LimitedProcess, LimitError

_TASK = Path(__file__).with_name("name_patterns_task.py")


def first_matches(
    patterns: Sequence[str], names: Sequence[str], *, where: str, seconds: float = 5.0
) -> list[int | None]:
    """For each name, the number of the first pattern that matches its beginning (re.match); None if there is none.

    where: the folder and the field, for errors
    seconds: for all together
    Raises FileError for a pattern that is no regular expression, or if the patterns take more time or memory.
    """
    if not patterns or not names:
        return [None] * len(names)
    process = LimitedProcess(_TASK, seconds=seconds)
    try:
        reply = process.ask({"patterns": list(patterns), "names": list(names)})
    except LimitError as excess:
        raise FileError(
            f"{where}: matching its {len(patterns)} patterns (the first is {patterns[0][:80]!r}) with the "
            f"{len(names)} modules {excess}; write simpler patterns, or name the modules."
        ) from excess
    finally:
        process.close()
    if "invalid" in reply:
        pattern = patterns[reply["invalid"]]
        raise FileError(f"{where}: {pattern[:80]!r} is not a regular expression: {reply['reason']}.")
    return [None if number < 0 else number for number in reply["first"]]

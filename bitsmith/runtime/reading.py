"""How the core reads matrices from memory where it computes a single row, which is what generation waits for.

The core knows several ways: how far it fetches ahead, and how many rows of a float matrix it reads together. Which is
fastest depends on the processor, and on the size of matrices. It is measured when a model is loaded, in less than 0.2
seconds, and kept in the user's cache folder for this processor, instruction set, number of threads, version of
bitsmith, layout and size. Results do not depend on the way.

The environment variable BITSMITH_READING can name a way by its number, from 0; then nothing is measured.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitsmith.errors import UsageError, quoted
from bitsmith.system.core_choices import ReadingChoice
from bitsmith.system.folders import cache_folder
from bitsmith.system.processor import processor_name
from bitsmith.version import __version__

PACKED, FLOATS = "packed", "floats"
LEAST = 64 << 20  # bytes; less may come from a cache, and tells nothing about memory
MARGIN = 1.05  # another way than the first must be faster by this factor
_MOST = 1 << 20  # bytes of the file of choices

_LOG = logging.getLogger(__name__)


def choose_readings(
    matrices: Mapping[tuple[str, str], Sequence[Any]], *, core: Any, isa: str, pool: Any
) -> list[ReadingChoice]:
    """The way to read each kind of matrix that a model has. The layout that has most bytes is measured.

    matrices: (kind, layout) -> the core's matrices of a model
    Raises UsageError if BITSMITH_READING names no way.
    """
    most = _most(matrices)
    named = _named(len(core.readings))
    if named is not None:
        return [ReadingChoice(kind, layout, named, (), "named") for kind, (layout, _) in most.items()]
    file = choices_file()
    known = _read(file)
    key = f"{processor_name()}; {isa}; {pool.threads} threads; bitsmith {__version__}"
    choices, measured = [], False
    for kind, (layout, size) in most.items():
        mean = size // len(matrices[kind, layout])
        entry = f"{key}; {layout}; matrices of 2^{mean.bit_length() - 1} bytes"
        choice = _remembered(known.get(entry), kind, len(core.readings))
        if choice is None and size < LEAST:
            choice = ReadingChoice(kind, layout, 0, (), "default")
        if choice is None:
            rates = tuple(core.reading_rates(matrices[kind, layout], isa, pool))
            choice = ReadingChoice(kind, layout, best(rates), rates, "measured")
            known[entry] = {"layout": layout, "rates": rates}
            measured = True
        choices.append(choice)
    if measured:
        _write(file, known)
    return choices


def _most(matrices: Mapping[tuple[str, str], Sequence[Any]]) -> dict[str, tuple[str, int]]:
    """The layout of each kind that has most bytes, and how many."""
    found: dict[str, tuple[str, int]] = {}
    for (kind, layout), members in matrices.items():
        size = sum(matrix.nbytes for matrix in members)
        if kind not in found or size > found[kind][1]:
            found[kind] = layout, size
    return found


def best(rates: tuple[float, ...]) -> int:
    """The number of the fastest way; 0 unless another is faster by more than what measurements scatter."""
    fastest = max(range(len(rates)), key=rates.__getitem__)
    return fastest if rates[fastest] > MARGIN * rates[0] else 0


def choices_file() -> Path:
    """Where choices are kept."""
    return cache_folder() / "reading.json"


def _named(count: int) -> int | None:
    wanted = os.environ.get("BITSMITH_READING", "")
    if not wanted:
        return None
    if wanted.isdecimal() and int(wanted) < count:
        return int(wanted)
    raise UsageError(f"BITSMITH_READING={quoted(wanted)}: expected a number from 0 to {count - 1}, or nothing.")


def _remembered(entry: Any, kind: str, count: int) -> ReadingChoice | None:
    """A choice as the file has it; None if it is not whole."""
    try:
        rates = tuple(float(rate) for rate in entry["rates"])
        if len(rates) == count and all(0 < rate < 1e15 for rate in rates):
            return ReadingChoice(kind, str(entry["layout"]), best(rates), rates, "remembered")
    except (TypeError, KeyError, ValueError):
        pass
    return None


def _read(file: Path) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or damaged, as it can be measured again."""
    try:
        if file.stat().st_size > _MOST:
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, choices: dict[str, Any]) -> None:
    """Replace the file in one step. A folder that cannot be written is no error."""
    import tempfile  # it brings much that running a model does not need

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix="reading-", delete=False) as made:
            json.dump(choices, made, indent=1)
        os.replace(made.name, file)
    except OSError as error:
        _LOG.info("the measured ways of reading are not kept: %s", error)

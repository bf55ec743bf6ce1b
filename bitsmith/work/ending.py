"""The end of an output: kept just before its files get their names, so that a kill behind that loses nothing either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsmith.containers.destination import Destination
from bitsmith.containers.output import Marks, mark_of
from bitsmith.work.folder import WorkFolder
from bitsmith.work.state import Arrays, State

FINISHED = "finished"
_MARKS = "marks"


def keep_ending(folder: WorkFolder, marks: Marks, values: Mapping[str, Any], arrays: Arrays) -> None:
    """Keep what is known of an output that is verified. marks: of each of its names, see `OutputFiles.commit`"""
    folder.write(FINISHED, {**values, _MARKS: dict(marks)}, arrays, small=True)


def finished(folder: WorkFolder, destination: Destination) -> State | None:
    """What was kept of an output that an earlier start has finished; None if its files do not have their names."""
    state = None if folder.fresh else folder.read(FINISHED)
    if state is None:
        return None
    marks = state.values.get(_MARKS)
    names = destination.names
    if (
        isinstance(marks, dict)
        and marks.keys() == set(destination.entries)
        and all(mark_of(names.final(name)) == mark for name, mark in marks.items())
    ):
        return state
    state.close()
    return None

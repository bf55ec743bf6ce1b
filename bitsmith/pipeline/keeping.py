"""What a run of quantize or convert keeps of its work, and which of its outputs an earlier start has finished."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.containers.destination import Destination
from bitsmith.containers.manifest import TensorRecord
from bitsmith.containers.output import Marks
from bitsmith.errors import Words
from bitsmith.pipeline.executor import Written
from bitsmith.pipeline.outputs import Output
from bitsmith.recipe.coverage import Coverage
from bitsmith.work.ending import FINISHED, finished, keep_ending
from bitsmith.work.folder import About, WorkFolder
from bitsmith.work.key import work_key
from bitsmith.work.pace import Pace


@dataclass(frozen=True)
class Ending:
    """What is known of an output once it is verified, beside what its plan says."""

    records: tuple[TensorRecord, ...]
    recovered: tuple[str, ...]
    notes: tuple[str, ...]
    coverage: Coverage | None


@dataclass(frozen=True)
class Kept:
    """The work folders of a run, one for each output; the first also holds what all outputs share."""

    folders: tuple[WorkFolder, ...]
    destinations: tuple[Destination, ...]

    @classmethod
    def of(
        cls, outputs: Sequence[Output], sources: Iterable[str | Path], *, fresh: bool, further: Mapping[str, Any]
    ) -> Kept:
        """The folders of some outputs. Nothing on the disk is touched.

        sources: every file that the run reads
        fresh: do not use what an earlier start has left
        further: what decides the bytes beside the plans, for JSON
        """
        destinations = [output.destination() for output in outputs]
        plans = [_described(output, place) for output, place in zip(outputs, destinations, strict=True)]
        key, pace = work_key(sources, {"outputs": plans, **further}), Pace()
        folders = []
        for output, place in zip(outputs, destinations, strict=True):
            assignment = output.assignment
            command = assignment.command
            about = About(command, f"{assignment.target} of {assignment.checkpoint.name}")
            folders.append(WorkFolder(place.names, key, about, fresh=fresh, pace=pace))
        places = [replace(place, folder=folder.files) for place, folder in zip(destinations, folders, strict=True)]
        for folder, place in zip(folders, places, strict=True):
            folder.needed = place.size
        return cls(tuple(folders), tuple(places))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The folders, open. The reservation of all outputs is held around it."""
        with ExitStack() as stack:
            for folder in self.folders:
                stack.enter_context(folder)
            try:
                yield
            except BaseException:
                self._drop_endings()
                raise

    def _drop_endings(self) -> None:
        """Forget the endings of outputs that did not get their names, and will not get them from a journal either."""
        for folder, place in zip(self.folders, self.destinations, strict=True):
            if finished_output(folder, place) is None and not os.path.lexists(place.names.journal):
                folder.drop(FINISHED)

    def is_finished(self, destination: Destination) -> bool:
        """Whether an earlier start has finished an output: the files with its names are those that it wrote."""
        at = next(at for at, each in enumerate(self.destinations) if each.names == destination.names)
        return finished_output(self.folders[at], destination) is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """For the user, before the work: what is continued, and what cannot be used."""
        first = next((folder for folder in self.folders if folder.said), self.folders[0])
        others = [word for folder in self.folders if folder is not first for word in folder.take_words()]
        return (*first.notes(), *others)

    def take_words(self) -> tuple[str, ...]:
        """What the user should know of work that could not be used, since the last time."""
        return tuple(word for folder in self.folders for word in folder.take_words())


def keep_output(folder: WorkFolder, ending: Ending, marks: Marks) -> None:
    """Keep what is known of an output, just before its files get their names. marks: of each name"""
    coverage = ending.coverage
    values = {
        "records": [[each.name, each.sha256, each.source_sha256, each.error] for each in ending.records],
        "recovered": list(ending.recovered),
        "notes": [[isinstance(note, Words), note] for note in ending.notes],
        "coverage": None if coverage is None else [coverage.tokens, coverage.every, coverage.fallback],
    }
    counts = {} if coverage is None else {str(layer): np.asarray(n) for layer, n in coverage.counts.items()}
    keep_ending(folder, marks, values, counts)


def finished_output(folder: WorkFolder, destination: Destination) -> Ending | None:
    """The ending of an output that an earlier start has finished; None if its files are not there."""
    state = finished(folder, destination)
    if state is None:
        return None
    with state:
        coverage = state.values["coverage"]
        counts = {int(layer): state.array(layer) for layer in state.names}
        return Ending(
            tuple(TensorRecord(*record) for record in state.values["records"]),
            tuple(state.values["recovered"]),
            tuple(Words(note) if worded else note for worded, note in state.values["notes"]),
            None if coverage is None else Coverage(counts, *coverage),
        )


def ending_of(written: Written, notes: Sequence[str], coverage: Coverage | None) -> Ending:
    """The ending of an output that is verified."""
    return Ending(written.manifest.tensors, written.recovered, tuple(notes), coverage)


def _described(output: Output, place: Destination) -> dict[str, Any]:
    """Everything about an output that its bytes depend on. The headers hold types, places, recipe and manifest."""
    digest = hashlib.sha256()
    for layout in place.layouts:
        digest.update(f"{layout.filename} {layout.size} {len(layout.header)}\n".encode() + layout.header)
    for name, data in place.extras.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    training = output.training
    return {
        "layouts": digest.hexdigest(),
        "method": str(output.method),
        "effort": output.effort,
        "device": output.device,
        "training": None if training is None else training.to_dict(),
    }

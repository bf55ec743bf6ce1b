"""Reservation: the places of all outputs of a run, checked and claimed before any work starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from bitsmith.containers.claim import Claim
from bitsmith.containers.destination import Destination, check_names, check_parent, check_space
from bitsmith.containers.gguf.split import split_prefix
from bitsmith.containers.journal import clear_up, repair
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.sources import SourceFiles
from bitsmith.errors import FileError, UsageError

_PATIENCE = 5.0  # seconds to wait for another run that is just giving its files their names
_STEP = 0.05  # seconds between two looks


class Reservation:
    """The right to write some outputs. Every command that writes a file for the user takes one first.

    Use it as a context manager around the whole work; leaving it gives the right back.
    """

    def __init__(
        self,
        destinations: Sequence[Destination],
        *,
        sources: Iterable[str | Path] = (),
        force: bool = False,
        finished: Callable[[Destination], bool] = lambda each: False,
    ) -> None:
        """Check and claim the places of the outputs, and clear away what a killed run left there.

        sources: every file that the run reads; none of them is replaced or removed, whatever it is called
        force: replace outputs that exist
        finished: says of an output, once it is claimed, whether an earlier start of the same run has finished it; such
            an output may exist, and is not written
        Raises UsageError if an output must not be written (see `check_names`) or another run is writing it, FileError
        if it cannot be written: no folder, no right, too little space on a disk for all of them together.
        """
        self.force = force
        self._sources = SourceFiles(sources)
        self._claims: dict[OutputNames, Claim] = {}
        for each in destinations:
            check_parent(each.target)
        try:
            for each in destinations:
                self._claim(each)
            left = [each for each in destinations if not finished(each)]
            for each in left:
                check_names(each, self._sources, force=force)
            check_space(left)
        except BaseException:
            self.release()
            raise

    def claim_of(self, destination: Destination) -> Claim:
        """The claim of an output. Raises KeyError if it is not one of this reservation."""
        return self._claims[destination.names]

    def check_again(self, destination: Destination) -> None:
        """Raise as for a new reservation, if what has an output's names has changed since."""
        if self.force:
            check_names(destination, self._sources, force=True)

    def release(self) -> None:
        """Give the right back."""
        for claim in self._claims.values():
            claim.release()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _claim(self, destination: Destination) -> None:
        names = destination.names
        try:
            self._claims[names] = Claim(names)
            for path in names.leftovers():
                self._sources.refuse(path)
            repair(names)
            clear_up(names)
        except OSError as error:
            raise FileError(
                f"{destination.target}: cannot be written ({error.filename or 'there'}: {error.strerror or error}); "
                "check the name, space and permissions, or choose another output path."
            ) from error


def settle(path: Path) -> None:
    """Finish or undo a replacement of the model at `path` that was interrupted, before the model is opened.

    Looks for the journals of the model, of the set that it is a part of, and of the folder around it. Waits a moment
    for a run that is replacing the model right now. Raises FileError if the files cannot be put in order.
    """
    try:
        place = Path(os.path.realpath(path))
    except ValueError:  # no file can have such a name
        return
    prefix = split_prefix(place.name)
    files = [OutputNames(place.parent, name, True) for name in {prefix, f"{prefix}.gguf"}]
    folders = [OutputNames(each.parent, each.name, False) for each in (place, place.parent)]
    for names in (*files, *folders):
        if os.path.lexists(names.journal):
            _settle(names, path)


def _settle(names: OutputNames, path: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while os.path.lexists(names.journal):
        try:
            claim = Claim(names)
        except UsageError as error:
            if time.monotonic() > until:
                raise FileError(f"{path}: another run is replacing it at this moment; try again later.") from error
            time.sleep(_STEP)
            continue
        except OSError as error:
            raise _cannot_settle(names, path, error) from error
        try:
            repair(names)
            clear_up(names)
        except OSError as error:
            raise _cannot_settle(names, path, error) from error
        finally:
            claim.release()


def _cannot_settle(names: OutputNames, path: Path, error: OSError) -> FileError:
    return FileError(
        f"{path}: a run was interrupted while it replaced this model, and putting its files in order failed "
        f"({error.strerror or error}); open it once with the right to write in {names.folder}."
    )

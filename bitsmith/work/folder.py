"""Work folder: what a run has done so far on one output, beside it, found again by running the same command.

It lies in `.NAME.bitsmith.work/KEY`, where the key names everything that the bytes depend on. Whoever has the claim of
the output may use it; the claim ends with its process, however that ends, so no lock can be left behind.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.renames import remove
from bitsmith.errors import BitsmithError, FileError, ResourceError, Words
from bitsmith.version import __version__
from bitsmith.work.key import KEY
from bitsmith.work.ledger import WorkLedger
from bitsmith.work.pace import Pace
from bitsmith.work.state import Arrays, DamagedError, State, state_bytes, write_state

_log = logging.getLogger(__name__)
ABOUT, LEDGER, FILES, TASKS, SUFFIX = "about.json", "ledger", "files", "tasks", ".state"
_KEPT = "what was done is kept"
_SPARE = 16 << 20  # bytes that keeping state leaves free on a disk, beside what the outputs still need
_LARGEST = 1 << 16  # bytes of about.json


@dataclass(frozen=True)
class About:
    """What a work folder is for, in words.

    command: its name
    what: "q4_k_m of SmolLM2-135M"
    started: seconds since 1970
    """

    command: str
    what: str
    version: str = __version__
    started: float = 0.0


class WorkFolder:
    """The work of one run on one output. Use it as a context manager inside of the output's reservation.

    Leaving it after success removes it. After an interrupt or an error of the disk it stays, if it holds anything that
    another start can use, and the error says so; after one of memory too, which another start may have. After any
    other error it goes, since the same error would come again.

    words: what the user should know of work that could not be used
    """

    def __init__(self, names: OutputNames, key: str, about: About, *, fresh: bool = False, pace: Pace | None = None):
        """Nothing on the disk is touched before `open`. fresh: do not use what lies there"""
        self.root = names.work
        self.path = names.work / key
        self.about = about
        self.fresh = fresh
        self.pace = pace or Pace()
        self.words: list[str] = []
        self.needed = 0  # bytes that the output will take
        self._lines: WorkLedger | None = None
        self._full = False

    @property
    def files(self) -> Path:
        """Where the output's files lie until they get their names."""
        return self.path / FILES

    @property
    def tasks(self) -> Path:
        """Where results of tasks lie, if the run has several workers."""
        return self.path / TASKS

    # -- opening and leaving

    def open(self) -> None:
        """Make the folder, or take what an interrupted run left there; the caller holds the output's claim.

        Raises FileError if it cannot be made.
        """
        try:
            if self.fresh and os.path.lexists(self.root):
                remove(self.root)
            for each in (self.root, self.path):
                if each.is_symlink():
                    raise FileError("it is a link")
            self.path.mkdir(parents=True, exist_ok=True)
            self._read_ledger()
            self._look_around()
            if not (self.path / ABOUT).exists():
                told = {**vars(self.about), "started": time.time()}
                (self.path / ABOUT).write_text(json.dumps(told), encoding="utf-8")
        except (OSError, FileError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise FileError(
                f"{self.root} cannot be used ({what}); remove it, or choose another output path."
            ) from error

    def _read_ledger(self) -> None:
        self._lines = WorkLedger(self.path / LEDGER)
        if self._lines.damaged:
            self.words.append(f"the end of {self._lines.path} is damaged; what it told of is made again")

    def _look_around(self) -> None:
        """Remove what holds nothing, and name what another run left."""
        for other in sorted(self.root.iterdir()):
            if other == self.path or not is_run(other):
                continue
            if not _worth(other):
                remove(other)
                continue
            found = read_about(other)
            if found is None or found.version == __version__:
                why = "an interrupted run with other files, options or programs"
            else:
                why = f"an interrupted run of bitsmith {found.version}"
            self.words.append(f"{other} holds work of {why}, which is not used; `bitsmith clean` removes it")

    @property
    def worth(self) -> bool:
        """Whether there is anything that another start can use."""
        return _worth(self.path)

    @property
    def said(self) -> str:
        """How far the interrupted run came, in words such as "block 7 of 12"; "" if it kept nothing."""
        told = [line["said"] for line in self.ledger.lines if isinstance(line.get("said"), str)]
        return told[-1] if told else ""

    def notes(self) -> tuple[str, ...]:
        """For the user, before the work: what is continued, and what cannot be used."""
        after = f" after {self.said}" if self.said else ""
        said = f"continuing an interrupted run{after}, from {self.path}; `--fresh` starts again"
        return (*((Words(said),) if self.worth else ()), *self.take_words())

    def take_words(self) -> tuple[str, ...]:
        """What the user should know of work that could not be used, since the last time."""
        found = tuple(map(Words, self.words))
        self.words.clear()
        return found

    def remove(self) -> None:
        """Remove the folder, and the one around it if nothing else is left there."""
        if os.path.lexists(self.path):
            shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.root.rmdir()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        passing = isinstance(error, FileError | ResourceError)
        lost = error is None or (isinstance(error, BitsmithError) and not passing)
        if lost or not self.worth:
            self.remove()
        elif error is not None and not any(_KEPT in note for note in getattr(error, "__notes__", ())):
            error.add_note(f"{_KEPT} in {self.path}; the same command continues, and `bitsmith clean` removes it")

    # -- the ledger

    @property
    def ledger(self) -> WorkLedger:
        """Its ledger. Raises ValueError before `open`."""
        if self._lines is None:
            raise ValueError(f"{self.path} is not open.")
        return self._lines

    def add(self, lines: Sequence[dict[str, Any]]) -> bool:
        """Add lines to the ledger. False if they cannot be written; that never stops a run, see `write`."""
        try:
            self.ledger.add(lines)
        except OSError as error:
            self._cannot_keep(error.strerror or str(error))
            return False
        return True

    # -- state

    def read(self, name: str) -> State | None:
        """A state; None if there is none. One that is damaged is removed, with a word."""
        path = self.path / f"{name}{SUFFIX}"
        try:
            return State(path)
        except FileNotFoundError:
            return None
        except (DamagedError, FileError, OSError) as error:
            self.words.append(f"{path.name} of the kept work is damaged ({error}); it is made again")
            _log.warning("%s: %s", path, error)
            with suppress(OSError):
                remove(path)
            return None

    def write(self, name: str, values: Mapping[str, Any], arrays: Arrays, *, small: bool = False) -> bool:
        """Keep a state, in place of one of the same name. False if the disk has no room to spare for it.

        A disk that is full later stops the run with the output's own error; keeping state never does.
        small: write it even if little room is left
        """
        if not small and not self._room(state_bytes(arrays)):
            return False
        try:
            write_state(self.path / f"{name}{SUFFIX}", values, arrays)
        except OSError as error:
            self._cannot_keep(error.strerror or str(error))
            return False
        return True

    def drop(self, name: str) -> None:
        """Remove a state that is not needed any more."""
        with suppress(OSError):
            (self.path / f"{name}{SUFFIX}").unlink(missing_ok=True)

    def states(self) -> list[str]:
        """Names of all states."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self.path.glob(f"*{SUFFIX}"))

    def _room(self, size: int) -> bool:
        missing = max(0, self.needed - _blocks(self.files))
        if size + missing + _SPARE <= shutil.disk_usage(self.path).free:
            return True
        self._cannot_keep(f"it would take {size:,} bytes, which the disk does not have to spare")
        return False

    def _cannot_keep(self, why: str) -> None:
        if not self._full:
            self._full = True
            self.words.append(f"not all work is kept in {self.path}: {why}; after an interruption more is done again")


def is_run(path: Path) -> bool:
    """Whether a path in a work folder is what a run makes there: a folder with a key for its name."""
    return KEY.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def read_about(path: Path) -> About | None:
    """What a work folder says of itself; None if that cannot be read."""
    try:
        with open(path / ABOUT, "rb") as file:
            found = json.loads(file.read(_LARGEST))
        known = {"command": str, "what": str, "version": str, "started": float}
        if not all(isinstance(found.get(name), kind) for name, kind in known.items()):
            return None
        return About(**{name: found[name] for name in known})
    except (OSError, ValueError, RecursionError, AttributeError):
        return None


def _worth(path: Path) -> bool:
    """Whether a folder holds a ledger, a state, or results of tasks."""
    try:
        names = [each.name for each in os.scandir(path)]
    except OSError:
        return False
    return any(name in (LEDGER, TASKS) or name.endswith(SUFFIX) for name in names)


def _blocks(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(os.lstat(path).st_blocks * 512 for path in folder.rglob("*")) if folder.is_dir() else 0

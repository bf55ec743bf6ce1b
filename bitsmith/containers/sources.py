"""SourceFiles: the files that a run reads, which no output of it may replace or remove."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bitsmith.errors import UsageError

_Identity = tuple[int, int]  # device and inode: the same for every name of a file, hard links and symbolic links too


def files_of(*named: str | Path | None) -> list[Path]:
    """The files that options of a run name, such as a calibration text; names of anything else give none.

    A folder gives every file in it.
    """
    found: list[Path] = []
    for each in named:
        path = Path(each or "").expanduser()
        if each and _identity(path) is not None:
            found += [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return found


class SourceFiles:
    """The files that a run reads, with the folders that hold them."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        """paths: files; paths that do not exist, such as a name that means something else, count for nothing."""
        self._files: dict[_Identity, Path] = {}
        self._folders: dict[_Identity, Path] = {}
        for path in map(Path, paths):
            identity = _identity(path)
            if identity is None:
                continue
            self._files.setdefault(identity, path)
            for folder in Path(os.path.realpath(path)).parents:
                around = _identity(folder)
                if around is not None:
                    self._folders.setdefault(around, path)

    def refuse(self, path: Path) -> None:
        """Raise UsageError if replacing or removing `path` would take away a file that the run reads."""
        identity = _identity(path)
        if identity is None:
            return
        taken = self._files.get(identity) or self._folders.get(identity)
        if taken is None and path.is_dir():
            taken = self._inside(path)
        if taken is not None:
            same = "a file that this run reads" if taken == path else f"{taken}, which this run reads"
            raise UsageError(f"{path}: the output would replace {same}; choose another output path.")

    def _inside(self, folder: Path) -> Path | None:
        """A file in `folder` that is a file of the run under another name."""
        if not self._files:
            return None
        for parent, _, names in os.walk(folder):
            for name in names:
                identity = _identity(Path(parent, name))
                if identity in self._files:
                    return Path(parent, name)
        return None


def _identity(path: Path) -> _Identity | None:
    """Device and inode of what a path leads to; None if that does not exist or cannot be looked up."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino

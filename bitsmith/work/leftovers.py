"""What interrupted runs have left beside outputs: found, and removed where no run uses it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.containers.claim import Claim, is_claimed
from bitsmith.containers.destination import on_disk
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.renames import remove
from bitsmith.containers.reservation import settle
from bitsmith.errors import FileError, UsageError
from bitsmith.work.folder import is_run, read_about

_NAME = re.compile(r"\.(?P<name>.+)\.bitsmith\.(?P<kind>work|partial|old|journal\.new|journal|lock)", re.DOTALL)
_DEPTH = 2  # levels of folders below the one that is searched
_KINDS = {"partial": "temporary", "old": "temporary", "journal.new": "temporary", "journal": "replacement"}


@dataclass(frozen=True)
class Leftover:
    """Something that a run has left.

    output: the output that it belongs to
    kind: "work" (continued by the same command), "temporary" (an unfinished file), "replacement" (names were changing;
        removing it finishes or undoes that), "lock"
    what: "quantize, q4_k_m of SmolLM2-135M, bitsmith 0.1.0"; "" if it does not say
    size: bytes on the disk
    used: when it was last written, seconds since 1970
    in_use: whether a run that lives uses it
    """

    path: Path
    output: Path
    kind: str
    what: str
    size: int
    used: float
    in_use: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path), "output": str(self.output)}


def find_leftovers(folder: str | Path) -> list[Leftover]:
    """Everything that runs have left in a folder and two levels below, by path. Raises FileError if it is no folder."""
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise FileError(f"{top} is not a folder; give the one where outputs lie.")
    return sorted(_inside(top, _DEPTH), key=lambda each: str(each.path))


def _inside(folder: Path, depth: int) -> Iterator[Leftover]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return  # nobody could write there, either
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is not None:
            yield from _leftovers(Path(entry.path), match["name"], match["kind"])
        elif depth and entry.is_dir(follow_symlinks=False):
            yield from _inside(Path(entry.path), depth - 1)


def _leftovers(path: Path, name: str, kind: str) -> Iterator[Leftover]:
    names = _names(path.parent, name)
    try:
        claimed = is_claimed(names)
        output = names.final(name)
        if kind != "work":
            yield Leftover(path, output, _KINDS.get(kind, kind), "", on_disk(path), os.lstat(path).st_mtime, claimed)
            return
        for each in sorted(path.iterdir()) if not path.is_symlink() else ():
            if not is_run(each):
                continue
            about = read_about(each)
            what = "" if about is None else f"{about.command}, {about.what}, bitsmith {about.version}"
            used = max(os.lstat(inner).st_mtime for inner in (each, *each.rglob("*")))
            yield Leftover(each, output, kind, what, on_disk(each), used, claimed)
    except OSError:
        return  # it was just removed, or it cannot be read


def _names(folder: Path, name: str) -> OutputNames:
    return OutputNames.of(folder / name, as_folder=False)


def remove_leftovers(found: Iterable[Leftover]) -> list[Leftover]:
    """Remove what no run uses. Returns what was removed. Raises FileError for one that cannot be removed."""
    removed = []
    for each in found:
        if each.in_use:
            continue
        try:
            claim = None if each.kind == "replacement" else Claim(_names(each.output.parent, each.output.name))
        except UsageError:
            continue  # a run has begun since
        except OSError as error:
            raise _cannot(each, error) from error
        try:
            if claim is None:
                settle(each.output)
            elif each.kind != "lock":  # which goes with the claim
                remove(each.path)
                if each.kind == "work" and not any(each.path.parent.iterdir()):
                    each.path.parent.rmdir()
        except OSError as error:
            raise _cannot(each, error) from error
        finally:
            if claim is not None:
                claim.release()
        removed.append(each)
    return removed


def _cannot(each: Leftover, error: OSError) -> FileError:
    return FileError(f"{each.path} cannot be removed ({error.strerror or error}); check its permissions.")

"""Gives the files of an output their names in one step: whoever looks finds the old output whole, or the new one.

One new name, or one name exchanged for another, is a single call. For anything else (a set of files; a folder where the
system cannot exchange two names) a journal is written first: it lists what gets which name and what had it. From then
on the next start can finish the replacement, or undo it, see `repair`. An error in the middle undoes it at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitsmith.containers.model_files import open_regular
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.renames import exchange, move_new, remove, sync
from bitsmith.errors import FileError

_VERSION = 1
_LARGEST = 16 << 20  # bytes of a journal


@dataclass(frozen=True)
class _Move:
    """One name that changes.

    new: inode of the file or folder that gets the name; None: the name goes away
    old: inode of the one that has it now; None: there is none
    The inodes also make sure that a journal that was copied from elsewhere moves nothing.
    """

    name: str
    new: int | None
    old: int | None


def put_in_place(names: OutputNames, entries: Sequence[str], gone: Sequence[Path], *, force: bool) -> None:
    """Give the temporary files or folders of `entries` their names, and remove `gone`, in one step.

    entries: names; the first gets its name last, because loaders start from it
    gone: parts of an older output of the same name that are not replaced by a file of their name
    force: replace what has one of the names
    Everything in the temporary files must be on the disk. Raises FileExistsError if a name is taken without `force`,
    OSError if the disk fails; then the old output has its names, unless a journal is still there. Afterwards what was
    replaced lies among the temporary files; call `clear_up`.
    """
    if len(entries) > 1 or gone or not _put_one(names, entries[0], force=force):
        _put_all(names, entries, gone, force=force)


def clear_up(names: OutputNames) -> None:
    """Remove the journal and every temporary file of an output whose files have their names, on the disk too."""
    _close(names)
    for path in names.leftovers():
        remove(path)


def _put_one(names: OutputNames, name: str, *, force: bool) -> bool:
    """Give one file or folder its name with one call. False if the system has no such call; nothing is done then."""
    partial, final = names.partial(name), names.final(name)
    if not force or not os.path.lexists(final):
        move_new(partial, final)
        return True
    if partial.is_dir():
        return exchange(partial, final)
    os.replace(partial, final)
    return True


def _put_all(names: OutputNames, entries: Sequence[str], gone: Sequence[Path], *, force: bool) -> None:
    moves = [_Move(name, _inode(names.partial(name)), _inode(names.final(name)) if force else None) for name in entries]
    moves += [_Move(path.name, None, _inode(path)) for path in gone]
    _write(names, moves)
    try:
        _forward(names, moves)
    except BaseException:
        _backward(names, moves)
        _close(names)
        raise


def repair(names: OutputNames) -> None:
    """Finish a replacement that was interrupted, or undo it if that is impossible; the caller holds the claim.

    Does nothing without a journal. Call `clear_up` afterwards. Raises FileError if the journal or the files are not as
    a run leaves them.
    """
    moves = _read(names)
    if moves is None:
        return
    if all(each.new in (None, _inode(names.partial(each.name)), _inode(names.final(each.name))) for each in moves):
        _forward(names, moves)
    elif all(each.old in (None, _inode(names.final(each.name)), _inode(names.old(each.name))) for each in moves):
        _backward(names, moves)
    else:
        raise FileError(
            f"{names.final(names.name)}: a run was interrupted while it replaced this output, and its files have been "
            f"moved since. See what lies in {names.folder} (.NAME.bitsmith.partial is new, .NAME.bitsmith.old is "
            f"old), then remove {names.journal}."
        )


# -- the two directions; both can be interrupted anywhere and begun again


def _forward(names: OutputNames, moves: Iterable[_Move]) -> None:
    moves = list(moves)
    for move in moves:
        if move.old is not None and _inode(names.final(move.name)) == move.old:
            move_new(names.final(move.name), names.old(move.name))
    sync(names.folder)
    for move in reversed(moves):
        if move.new is not None and _inode(names.partial(move.name)) == move.new:
            move_new(names.partial(move.name), names.final(move.name))
    sync(names.folder)


def _backward(names: OutputNames, moves: Iterable[_Move]) -> None:
    moves = list(moves)
    for move in moves:
        if move.new is not None and _inode(names.final(move.name)) == move.new:
            move_new(names.final(move.name), names.partial(move.name))
    sync(names.folder)
    for move in reversed(moves):
        if move.old is not None and _inode(names.old(move.name)) == move.old:
            move_new(names.old(move.name), names.final(move.name))
    sync(names.folder)


def _inode(path: Path) -> int | None:
    """The inode of what has a name, not of what a link leads to; None if there is nothing."""
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None


# -- the journal's file


def _write(names: OutputNames, moves: Sequence[_Move]) -> None:
    """Write the journal; once it has its name, it is whole and on the disk."""
    content = {"version": _VERSION, "moves": [asdict(move) for move in moves]}
    with names.new_journal.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(names.new_journal, names.journal)
    sync(names.folder)


def _close(names: OutputNames) -> None:
    """Remove the journal, if there is one, because nothing is left to do."""
    if os.path.lexists(names.journal):
        os.unlink(names.journal)
        sync(names.folder)


def _read(names: OutputNames) -> list[_Move] | None:
    """The moves of a journal; None if there is none. Raises FileError if a run has not written it."""
    try:
        with open(open_regular(names.journal), "rb") as file:
            content = json.loads(file.read(_LARGEST))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise _foreign(names) from None
    found = content.get("moves") if isinstance(content, dict) and content.get("version") == _VERSION else None
    if not isinstance(found, list):
        raise _foreign(names)
    return [_move(names, each) for each in found]


def _move(names: OutputNames, value: Any) -> _Move:
    if not isinstance(value, dict) or value.keys() != {"name", "new", "old"}:
        raise _foreign(names)
    name, inodes = value["name"], (value["new"], value["old"])
    if not isinstance(name, str) or not names.belongs(name) or any(type(n) is not int for n in inodes if n is not None):
        raise _foreign(names)
    return _Move(name, *inodes)


def _foreign(names: OutputNames) -> FileError:
    return FileError(
        f"{names.journal} is not a journal that this version of bitsmith has written; nothing was changed. If no run "
        "is to be finished, remove it."
    )

"""Changing names on the disk: without replacing anything, or two names at once; and making changes durable.

Linux has one system call for both, renameat2 (man 2 rename). Where the system or the file system lacks it, other calls
stand in, or the caller takes several steps with a journal.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

_NOREPLACE, _EXCHANGE = 1, 2  # flags of renameat2
_AT_FDCWD = -100  # paths count from the working folder
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_LINKS = {*_UNSUPPORTED, errno.EPERM, errno.EMLINK, errno.EACCES}


def move_new(old: Path, new: Path) -> None:
    """Rename `old` to `new`. Raises FileExistsError if there is anything of that name.

    Without renameat2 a file gets its name by a hard link. Without hard links the name is looked up first; a name that
    another program makes in the same instant would be replaced then.
    """
    try:
        _move_new(old, new)
    except FileExistsError:
        if not os.path.samestat(os.lstat(old), os.lstat(new)):
            raise
        os.unlink(old)  # two names of one file: an earlier try was stopped between the link and this


def _move_new(old: Path, new: Path) -> None:
    if _renameat2(old, new, _NOREPLACE):
        return
    if not old.is_symlink() and old.is_dir():
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        os.rename(old, new)  # fails if a file, or a folder that is not empty, has appeared since
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from error
        os.rename(old, new)
        return
    try:
        os.unlink(old)
    except OSError:
        os.unlink(new)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Give each of two files or folders the name of the other in one step. False if the system cannot do so."""
    return _renameat2(one, other, _EXCHANGE)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and all folders in it, the innermost first."""
    for name, _, _ in os.walk(folder, topdown=False):
        sync(Path(name))


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all it holds; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@cache
def _system_call() -> Callable[..., int] | None:
    """The C library's renameat2; None if it has none."""
    import ctypes

    call: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return call


def _renameat2(old: Path, new: Path, flag: int) -> bool:
    """Call renameat2. False if the system or the file system does not have it. Raises OSError if it fails."""
    import ctypes

    call = _system_call()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(old), None, str(new))

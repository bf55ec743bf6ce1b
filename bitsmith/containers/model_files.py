"""How files of a model folder are opened: regular files only, bounded in size, and links only inside the folder.

A folder from elsewhere may hold a link to a private file, a device, or a pipe that never ends. Links into the hub's
cache are allowed, since snapshots there consist of them: `models--x/snapshots/REVISION/config.json` is a link to
`models--x/blobs/HASH`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bitsmith.errors import FileError


def open_regular(path: Path, what: str = "file of a model") -> int:
    """A descriptor of a regular file, for reading. Never waits, as opening a pipe would.

    what: what is expected, for errors
    Raises FileError if it is something else, OSError if it cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening alone can change the state of a device
        raise _not_regular(path, what)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path, what)
    return descriptor


def read_small(path: Path, limit: int, *, folder: Path) -> bytes:
    """All bytes of a small file of a model folder.

    limit: most bytes that a file of this kind has
    folder: the model's folder; a link must stay in it, or lead into the hub's cache
    Raises FileError if the file is missing, not regular, too large, a link elsewhere, or cannot be read.
    """
    try:
        descriptor = open_regular(path)
        with open(descriptor, "rb") as file:
            opened = os.fstat(descriptor)
            _check_link(path, folder, opened)
            data = file.read(min(limit, opened.st_size) + 1)  # takes memory for as many bytes as it is asked for
    except FileNotFoundError as error:
        raise FileError(f"{path}: missing; a model folder needs it.") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}; check its permissions.") from error
    if len(data) > limit:
        raise FileError(f"{path}: expected at most {limit:,} bytes, found more; download it again.")
    return data


def _check_link(path: Path, folder: Path, opened: os.stat_result) -> None:
    """Raise FileError if the opened file lies neither in the folder nor in the hub's cache."""
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    blob = real.parent.name == "blobs" and "--" in real.parent.parent.name
    if not (real.is_relative_to(home) or blob) or not os.path.samestat(os.stat(real), opened):
        raise FileError(
            f"{path} is a link to {real}, outside the model's folder; a folder from elsewhere could use this to copy "
            "private files. If it is meant, put a copy of that file into the folder."
        )


def _not_regular(path: Path, what: str) -> FileError:
    return FileError(f"{path} is not a regular file, but a folder, pipe or device; expected a {what}: check the path.")

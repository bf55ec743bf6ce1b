"""Claim: only one run at a time writes an output.

A lock file lies beside the output while a run writes it. The system's lock (flock) on that file decides, and it ends
with the process, however that ends. The file's content is for messages only, except on a file system without flock:
there the file itself is the lock, and its content tells whether the process that made it still runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitsmith.containers.output_names import OutputNames
from bitsmith.errors import UsageError

_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_LARGEST = 4096  # bytes of a lock file's content that are read


class Claim:
    """The right to write an output, until `release` is called or the process ends."""

    def __init__(self, names: OutputNames) -> None:
        """Claim an output. Raises UsageError if another run has it, OSError if the lock file cannot be made."""
        handle = _claimed(names)
        self.release = weakref.finalize(self, _release, names.lock, handle, os.getpid())
        os.truncate(handle, 0)
        os.pwrite(handle, json.dumps(_this_process()).encode(), 0)


def is_claimed(names: OutputNames) -> bool:
    """Whether a run that lives has an output. Changes nothing. Raises OSError if the lock file cannot be looked at."""
    try:
        handle = os.open(names.lock, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return _may_run(_content(handle))
    finally:
        os.close(handle)
    return False


def _claimed(names: OutputNames) -> int:
    """The open lock file, locked by this process."""
    while True:
        try:
            handle, made = os.open(names.lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            try:
                handle, made = os.open(names.lock, os.O_RDWR | os.O_NOFOLLOW), False
            except FileNotFoundError:  # the other run has just ended
                continue
        try:
            if _locked(handle, names, made=made):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _locked(handle: int, names: OutputNames, *, made: bool) -> bool:
    """Lock an open lock file. False if it is not the one in the folder any more.

    made: whether this process has just made the file
    Raises UsageError if another run has it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refused(names, _content(handle)) from None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        owner = _content(handle)
        if not made and _may_run(owner):
            raise _refused(names, owner, f" If that run has ended, remove {names.lock}.") from None
        if not made:
            names.lock.unlink(missing_ok=True)
        return made
    return _is_at(handle, names.lock)


def _refused(names: OutputNames, owner: Mapping[str, Any], further: str = "") -> UsageError:
    who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "it has not said which"
    return UsageError(
        f"{names.final(names.name)}: another run is writing this output ({who}); wait until it is done, or choose "
        f"another output path.{further}"
    )


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _release(lock: Path, handle: int, process: int) -> None:
    """Remove the lock file while it is locked, so that nobody locks it afterwards; not in a child forked later."""
    if os.getpid() != process:
        return
    try:
        with suppress(OSError):  # a file that stays is no lock once it is closed
            if _is_at(handle, lock):
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


# -- the content


def _this_process() -> dict[str, object]:
    """boot, ticks: tell this process from a later one with the same number; "" if the system does not say."""
    return {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "boot": _boot(),
        "ticks": _ticks(os.getpid()),
    }


def _content(handle: int) -> dict[str, Any]:
    """What a lock file says of its process; empty if it is not written yet, or is not ours."""
    try:
        found = json.loads(os.pread(handle, _LARGEST, 0))
    except (ValueError, RecursionError):
        return {}
    wanted = {"pid": int, "host": str, "since": str, "boot": str, "ticks": str}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in wanted.items()):
        return {}
    return found


def _may_run(owner: Mapping[str, Any]) -> bool:
    """Whether the process that a lock file names may still run. Only asked where there is no flock."""
    if not owner or owner["host"] != os.uname().nodename:
        return True
    if owner["boot"] != _boot():
        return False
    return bool(_exists(owner["pid"]) and owner["ticks"] == _ticks(owner["pid"]))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str:
    """An identifier of this start of the system."""
    return _read(Path("/proc/sys/kernel/random/boot_id")).strip()


def _ticks(pid: int) -> str:
    """When a process started, in clock ticks."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""

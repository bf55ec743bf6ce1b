"""Checkpoints of `tune qlora`: a folder gets its final name only once it is whole."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bitsmith.containers.renames import sync
from bitsmith.errors import FileError
from bitsmith.system.sizes import human_bytes

KEPT = 2  # checkpoints
_WHOLE = "whole"  # file of a checkpoint that was written to its end
_STAGING = ".writing"  # folder in which a checkpoint lies until it is whole
_PREFIX = "checkpoint-"

_log = logging.getLogger(__name__)


def latest(folder: Path) -> Path | None:
    """The last whole checkpoint; those that were stopped in the middle are removed."""
    shutil.rmtree(folder / _STAGING, ignore_errors=True)
    found = []
    for path in folder.glob(f"{_PREFIX}*") if folder.is_dir() else ():
        if (path / _WHOLE).is_file():
            found.append(path)
        else:
            _log.info("removing %s, which was not written to its end", path)
            shutil.rmtree(path)
    return max(found, key=_step, default=None)


def save(folder: Path, step: int, write: Callable[[Path], None], *, nbytes: int) -> None:
    """Write the checkpoint behind a step, and remove all but the last ones.

    folder: of all checkpoints
    write: given a folder, makes the folder "checkpoint-STEP" inside of it
    nbytes: about how much it takes
    Raises FileError where the disk does not take it. What lies in `folder` is whole then, as before.
    """
    name, staging = f"{_PREFIX}{step}", folder / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write(staging)
        (staging / name / _WHOLE).touch()
        for path in (staging / name).iterdir():
            sync(path)
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(staging / name, folder / name)
        staging.rmdir()
    except (OSError, RuntimeError) as error:  # torch and safetensors raise RuntimeErrors where a disk is full
        shutil.rmtree(staging, ignore_errors=True)
        raise _refused(folder, step, nbytes, error) from error
    for path in sorted(folder.glob(f"{_PREFIX}*"), key=_step)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def _refused(folder: Path, step: int, nbytes: int, error: OSError | RuntimeError) -> FileError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().partition("\n")[0][:200]
    try:
        free = f"{human_bytes(shutil.disk_usage(folder).free)} are free there"
    except OSError as gone:
        free = f"its disk cannot be looked at ({gone.strerror})"
    last = latest(folder)
    rest = (
        "No checkpoint is there yet, so start anew"
        if last is None
        else f"{last.name} is whole: the same command with --resume goes on there"
    )
    return FileError(
        f"{folder}: the checkpoint of step {step} was not written ({why}); it takes about {human_bytes(nbytes)}, and "
        f"{free}. {rest}, once there is room."
    )


def _step(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))

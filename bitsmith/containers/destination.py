"""Checks before any work starts whether an output may be written to its destination."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitsmith.containers.layout import FileLayout
from bitsmith.errors import FileError, UsageError

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_TEMPLATES = "additional_chat_templates"
_SPARE_BYTES = 1 << 20  # free space to leave on the disk


def check_destination(
    target: Path,
    layouts: Sequence[FileLayout],
    *,
    extras: Mapping[str, bytes],
    as_folder: bool,
    force: bool,
    source: Path | None = None,
) -> None:
    """Raise if `target` and its shards, or with `as_folder` the folder, cannot be written.

    source: the model's folder or file, which is never replaced
    Raises UsageError if the output exists already (with `force`: if it is not a model), FileError if its parent folder
    is missing or not writable, or if the disk has too little space.
    """
    parent = target.parent
    if not parent.is_dir():
        raise FileError(f"{target}: there is no folder {parent}; make it first, or choose another --out.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FileError(f"{target}: the folder {parent} is not writable; choose another --out.")
    wants, found = ("a folder", "a file") if as_folder else ("a file", "a folder")
    if target.exists() and target.is_dir() != as_folder:
        raise UsageError(f"{target}: the output is {wants}, but {found} of that name exists; choose another --out.")
    outputs = [target] if as_folder else [parent / layout.filename for layout in layouts]
    taken = [path for path in outputs if path.exists()]
    if taken and not force:
        raise UsageError(f"{taken[0]} exists already; give --force to replace it, or choose another --out.")
    for path in taken:
        if source is not None and _holds(path, source):
            raise UsageError(f"{path}: the output would replace the model it is made from; choose another --out.")
        _check_folder(path) if as_folder else _check_file(path)
    needed = sum(layout.size for layout in layouts) + sum(len(data) for data in extras.values())
    free = shutil.disk_usage(parent).free
    if needed + _SPARE_BYTES > free:
        raise FileError(
            f"{target}: the output takes {needed:,} bytes, but the disk has {free:,} free; "
            "free some space or choose an --out on another disk."
        )


def _holds(path: Path, source: Path) -> bool:
    """Whether replacing `path` would remove `source`."""
    return path.samefile(source) or (path.is_dir() and path.resolve() in source.resolve().parents)


def make_folder(path: Path) -> None:
    """Make the folder for several outputs, if it is missing. Raises FileError if it cannot be made."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{path}: the folder cannot be made ({error.strerror or error}); choose another --out."
        ) from error


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is a device or pipe, which is never replaced; choose another --out.")


def _check_folder(path: Path) -> None:
    """Raise UsageError if a folder holds anything but a model's files: --force does not replace it then."""
    for entry in sorted(path.iterdir()):
        templates = entry.name == _TEMPLATES and entry.is_dir()
        if not templates and not (entry.is_file() and any(entry.match(pattern) for pattern in _MODEL_FILES)):
            raise UsageError(
                f"{path} holds {entry.name}, which is not a file of a model; --force would delete it. "
                "Move it away, or choose another --out."
            )

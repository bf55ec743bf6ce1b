"""Destination: where an output goes, and the checks before any work starts whether it may be written there."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bitsmith.containers.layout import FileLayout
from bitsmith.containers.output_names import OutputNames
from bitsmith.containers.renames import sync
from bitsmith.containers.sources import SourceFiles
from bitsmith.errors import FileError, UsageError

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
_TEMPLATES = "additional_chat_templates"
_SPARE_BYTES = 1 << 20  # free space to leave on the disk


@dataclass(frozen=True)
class Destination:
    """One output: a file (its shards lie beside it) or, with `as_folder`, a folder that holds every file.

    target: path of the output, with links followed by `followed`
    extras: content of small files by name; only with `as_folder`
    mode: permissions of the files, as for `os.open`
    option: what named the output, for messages
    folder: where its files lie until they get their names, on the same disk; files that a run left there are taken
        over. None: beside the output, and nothing stays after an error
    """

    target: Path
    layouts: Sequence[FileLayout]
    extras: Mapping[str, bytes] = field(default_factory=dict)
    as_folder: bool = False
    mode: int = 0o644
    option: str = "--out"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.as_folder and not all(self.names.belongs(layout.filename) for layout in self.layouts):
            raise ValueError(f"{self.target}: its files have other names: {[each.filename for each in self.layouts]}")

    @property
    def names(self) -> OutputNames:
        """Its own names and the temporary ones."""
        return OutputNames.of(self.target, as_folder=self.as_folder)

    @property
    def entries(self) -> list[str]:
        """What gets a name in the parent folder: the folder, or every file."""
        return [self.target.name] if self.as_folder else [layout.filename for layout in self.layouts]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(layout.size for layout in self.layouts) + sum(len(data) for data in self.extras.values())

    def older_parts(self) -> list[Path]:
        """Files of an older output of the same name that no file of this one replaces.

        They are the path that the user named, and parts of a split set that bitsmith wrote. Those of other programs
        stay: their names are alike, but nobody asked to replace them.
        """
        if self.as_folder:
            return []
        others = [path for path in self.names.present() if path.name not in self.entries]
        return [path for path in others if path.name == self.target.name or _is_own(path)]

    def taken(self) -> list[Path]:
        """What exists under its names, and what must go with it. A link that leads nowhere counts too."""
        return [*filter(os.path.lexists, map(self.names.final, self.entries)), *self.older_parts()]


def followed(path: Path, *, force: bool) -> Path:
    """Where an output at `path` is written: the place that `path` leads to if it is a link, else `path`.

    The link itself stays as it is. Raises UsageError for a link that leads nowhere, unless `force` is given.
    """
    if not path.is_symlink():
        return path
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise UsageError(f"{path} is a link that leads to itself; remove it, or choose another output path.")
    if not force and not place.exists():
        raise UsageError(
            f"{path} is a link to {place}, which does not exist; give --force to write there, or choose another output "
            "path."
        )
    return place


@contextmanager
def folder_for(path: Path | None) -> Iterator[None]:
    """Make the folder for several outputs, if it is missing; remove it again if nothing came to lie in it.

    path: None for no folder
    Raises FileError if it cannot be made.
    """
    made = False
    if path is not None and not path.is_dir():
        try:
            path.mkdir(exist_ok=True)
            made = True
            sync(path.parent)
        except OSError as error:
            raise FileError(
                f"{path}: the folder cannot be made ({error.strerror or error}); choose another output path."
            ) from error
    try:
        yield
    except BaseException:
        if made and path is not None and not any(path.iterdir()):
            path.rmdir()
        raise


def check_parent(target: Path) -> None:
    """Raise FileError if the folder around `target` is missing or not writable."""
    parent = target.parent
    if not parent.is_dir():
        raise FileError(f"{target}: there is no folder {parent}; make it first, or choose another output path.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FileError(f"{target}: the folder {parent} is not writable; choose another output path.")


def check_names(destination: Destination, sources: SourceFiles, *, force: bool) -> None:
    """Raise UsageError if an output must not be written, because of what has its names now.

    Without `force` nothing may have them. With it, never replaced are: files that the run reads, devices and pipes,
    links (`followed` has followed the one that the user named), and folders that hold more than a model.
    """
    target, as_folder = destination.target, destination.as_folder
    taken = destination.taken()
    for path in taken:
        sources.refuse(path)
    wants, found = ("a folder", "a file") if as_folder else ("a file", "a folder")
    if target.exists() and target.is_dir() != as_folder:
        raise UsageError(
            f"{target}: the output is {wants}, but {found} of that name exists; choose another output path."
        )
    if taken and not force:
        raise UsageError(
            f"{taken[0]} exists already; give --force to replace it, or choose another {destination.option}."
        )
    for path in taken:
        _check_folder(path) if as_folder else _check_file(path)


def check_space(destinations: Sequence[Destination]) -> None:
    """Raise FileError if a disk has too little space for all outputs that go there, written one after the other.

    An output that is replaced gives its space back only after the new one is whole.
    """
    disks: dict[int, list[Destination]] = {}
    for each in destinations:
        disks.setdefault(os.stat(each.target.parent).st_dev, []).append(each)
    for group in disks.values():
        more = needed = 0
        for each in group:
            more += each.size - (0 if each.folder is None else on_disk(each.folder))
            needed = max(needed, more)
            more -= sum(map(_freed, each.taken()))
        free = shutil.disk_usage(group[0].target.parent).free
        if needed + _SPARE_BYTES > free:
            what = "the output takes" if len(group) == 1 else f"the {len(group)} outputs together take"
            raise FileError(
                f"{', '.join(str(each.target) for each in group)}: {what} {needed:,} bytes, but the disk has {free:,} "
                "free; free some space or choose an output path on another disk."
            )


def on_disk(path: Path) -> int:
    """Bytes that a file, or all files in a folder, take on the disk; none if it is not there."""
    if path.is_dir() and not path.is_symlink():
        return sum(map(on_disk, path.iterdir()))
    return os.lstat(path).st_blocks * 512 if os.path.lexists(path) else 0


def _freed(path: Path) -> int:
    """Bytes that the disk gets back when `path` is removed; none for a file that has another name too."""
    if path.is_dir() and not path.is_symlink():
        return sum(map(_freed, path.iterdir()))
    found = os.lstat(path)
    return found.st_blocks * 512 if found.st_nlink == 1 else 0


def _is_own(path: Path) -> bool:
    """Whether bitsmith wrote a GGUF file, alone or as a part of a split set."""
    from bitsmith.containers.gguf.own import is_own

    return is_own(path)


def _check_file(path: Path) -> None:
    kind = os.lstat(path).st_mode
    if stat.S_ISLNK(kind):
        raise UsageError(f"{path} is a link, which is never replaced; remove it, or choose another output path.")
    if not stat.S_ISREG(kind):
        raise UsageError(f"{path} is a device or pipe, which is never replaced; choose another output path.")


def _check_folder(path: Path) -> None:
    """Raise UsageError if a folder holds anything but a model's files: --force does not replace it then."""
    for entry in sorted(path.iterdir()):
        templates = entry.name == _TEMPLATES and entry.is_dir()
        if not templates and not (entry.is_file() and any(entry.match(pattern) for pattern in _MODEL_FILES)):
            raise UsageError(
                f"{path} holds {entry.name}, which is not a file of a model; --force would delete it. "
                "Move it away, or choose another output path."
            )

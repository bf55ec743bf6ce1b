"""The names of an output: its own, those of the parts of a split set, and the temporary ones beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitsmith.containers.gguf.split import split_parts, split_prefix

_MARK = ".bitsmith."
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.bitsmith\.(?:partial|old)", re.DOTALL)


@dataclass(frozen=True)
class OutputNames:
    """Names in one folder that belong to one output.

    folder: the folder that holds the output
    name: name of the output; "m.gguf" for every part of a split set "m-00001-of-00003.gguf"
    parts: whether parts of a split set belong to it
    """

    folder: Path
    name: str
    parts: bool

    @classmethod
    def of(cls, target: Path, *, as_folder: bool) -> OutputNames:
        """The names of an output at `target`."""
        if as_folder or split_parts(target.name) is None:
            return cls(target.parent, target.name, not as_folder)
        return cls(target.parent, f"{split_prefix(target.name)}.gguf", True)

    def belongs(self, name: str) -> bool:
        """Whether `name` is the output's name or that of a part of it."""
        if name == self.name:
            return True
        return self.parts and split_parts(name) is not None and split_prefix(name) == split_prefix(self.name)

    @property
    def lock(self) -> Path:
        """The file that shows that a run writes this output."""
        return self.folder / f".{self.name}{_MARK}lock"

    @property
    def journal(self) -> Path:
        """The record of a replacement of several names; it is there only while names change."""
        return self.folder / f".{self.name}{_MARK}journal"

    @property
    def new_journal(self) -> Path:
        """The record before it is whole."""
        return self.folder / f".{self.name}{_MARK}journal.new"

    @property
    def work(self) -> Path:
        """The folder with what runs keep of their work on this output, see `bitsmith.work`."""
        return self.folder / f".{self.name}{_MARK}work"

    def partial(self, name: str) -> Path:
        """Where the new file or folder `name` lies until it gets its name."""
        return self.folder / f".{name}{_MARK}partial"

    def old(self, name: str) -> Path:
        """Where the old file or folder `name` lies while names change."""
        return self.folder / f".{name}{_MARK}old"

    def final(self, name: str) -> Path:
        """The path under its final name."""
        return self.folder / name

    def present(self) -> list[Path]:
        """The output and its parts, of any number, that are in the folder now."""
        return [self.final(name) for name in self._listed() if self.belongs(name)]

    def leftovers(self) -> list[Path]:
        """Temporary files and folders of this output that are in the folder now, without lock and journal."""
        found = []
        for name in self._listed():
            match = _TEMPORARY.fullmatch(name)
            if (match and self.belongs(match["name"])) or name == self.new_journal.name:
                found.append(self.folder / name)
        return found

    def _listed(self) -> Iterator[str]:
        return iter(sorted(path.name for path in self.folder.iterdir()))

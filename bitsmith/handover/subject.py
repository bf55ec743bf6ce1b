"""The file that is handed over: its checkpoint, and which kind of container it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bitsmith.containers import CONTAINERS
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import Tokenizer

FLOATS = "floats"  # a folder in 16 or 32 bits
FOREIGN = "foreign"  # a folder in codes that bitsmith does not read


@dataclass(frozen=True)
class Subject:
    """A model that is handed over.

    container: a name of CONTAINERS, FLOATS or FOREIGN
    """

    checkpoint: Checkpoint
    container: str

    @property
    def path(self) -> Path:
        """The folder, or the GGUF file (the first of a split set), absolute."""
        found = self.checkpoint.folder or self.checkpoint.source.files[0]
        return found.resolve()

    @property
    def name(self) -> str:
        """A short name for folders and commands."""
        return self.checkpoint.name

    @property
    def context(self) -> int:
        """Tokens that the model was trained for. Raises where the configuration cannot be read."""
        return self.checkpoint.config.context

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises FileError or UnsupportedError."""
        return self.checkpoint.tokenizer()


def open_subject(model: str | Path) -> Subject:
    """Open the file or folder that is handed over. Raises as `open_checkpoint`."""
    checkpoint = open_checkpoint(model)
    return Subject(checkpoint, _container(checkpoint))


def _container(checkpoint: Checkpoint) -> str:
    if checkpoint.naming == "gguf":
        return "gguf"
    if checkpoint.foreign is not None:
        return FOREIGN
    layouts = {info.layout for info in checkpoint.source.tensors.values()}
    held = {layout.partition("/")[0] for layout in layouts if "/" in layout}
    if "bitsmith" in held:
        return "native"
    named = next((name for name in held if name in CONTAINERS), None)
    if named is not None:
        return named
    return FOREIGN if held else FLOATS

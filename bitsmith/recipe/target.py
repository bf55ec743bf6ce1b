"""Target: the value of `--to`."""

from __future__ import annotations

from dataclasses import dataclass

from bitsmith.containers import CONTAINERS, find_container
from bitsmith.errors import UsageError, quoted

MMPROJ = "mmproj"  # gguf/mmproj: not the model, but its parts for images


@dataclass(frozen=True)
class Target:
    """A container, and the name of a format or mix in it."""

    container: str
    name: str

    def __str__(self) -> str:
        return f"{self.container}/{self.name}"

    @property
    def is_mmproj(self) -> bool:
        """Whether the output is the file of a model's parts for images."""
        return (self.container, self.name) == ("gguf", MMPROJ)

    def gguf_name(self, stem: str) -> str:
        """The usual name of a GGUF file of the model `stem`."""
        return f"mmproj-{stem}-F16.gguf" if self.is_mmproj else f"{stem}-{self.name.upper()}.gguf"

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        return find_container(self.container).is_folder

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "CONTAINER/NAME"; a bare name means gguf/NAME. Raises UsageError for an unknown container."""
        container, slash, name = text.strip().lower().partition("/")
        if not slash:
            container, name = "gguf", container
        if not slash and name in CONTAINERS and name != "gguf":
            raise UsageError(f"--to={quoted(text)}: {name} is a container; add a format, for instance {name}/int4.")
        if container not in CONTAINERS:
            raise UsageError(f"--to={quoted(text)}: unknown container {container!r}; known: {', '.join(CONTAINERS)}.")
        if not name:
            raise UsageError(f"--to={quoted(text)}: expected CONTAINER/FORMAT, such as gguf/q4_k_m or native/int4.")
        return cls(container, name)

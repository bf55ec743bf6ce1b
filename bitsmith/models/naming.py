"""The short name of a model, from where its files lie: for output files, reports and the metadata of new files."""

from __future__ import annotations

import re
from pathlib import Path

from bitsmith.models.gguf_choice import without_ending, without_quantization

_CACHED_REPO = re.compile(r"models--(?:.+?--)?(?P<name>.+)", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_PLACES = frozenset({"", ".", "snapshots", "snapshot"})  # where, not what
_WEIGHTS = re.compile(  # names of weight files that every model has
    r"(ggml-model|model|pytorch_model|diffusion_pytorch_model|consolidated|weights)", re.IGNORECASE
)
_UNNAMED = "model"


def folder_name(folder: Path) -> str:
    """The name of a model's folder; in the hub's cache, the repository's name.

    "models--owner--repo/snapshots/<commit>" gives "repo", "." the name of the current folder.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        cached = _CACHED_REPO.fullmatch(place.name)
        if cached is not None:
            return cached["name"]
        if place.name == "..":
            return folder_name(folder.resolve())
        if place.name.lower() not in _PLACES and not _COMMIT.fullmatch(place.name):
            return place.name
    return _UNNAMED


def file_name(file: Path) -> str:
    """The name of a file's model: the file's own, without its ending and without the number of a split file.

    A file with a name that every model has ("model.safetensors", "ggml-model-Q4_K_M.gguf") has its folder's name.
    """
    stem = without_ending(file.stem)
    base = without_quantization(stem)
    if _WEIGHTS.fullmatch(base) or _COMMIT.fullmatch(base):
        return folder_name(file.parent) + stem[len(base) :]
    return stem


def output_stem(name: str) -> str:
    """A model's name for a new file: the quantization of the source at its end is left away ("m-F16" gives "m")."""
    return without_quantization(name)

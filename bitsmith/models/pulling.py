"""`pull`: fetches a hub model into the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from bitsmith.errors import FileError, UsageError
from bitsmith.models.gguf_choice import quantization_in
from bitsmith.models.hub import HubModel, fetch, locate, looks_like_hub_name, wanted_files, with_sizes
from bitsmith.models.quantization import of_folder
from bitsmith.models.stored import StoredModel, cache_folder
from bitsmith.system.progress import Report, silent

_SPARE_BYTES = 64 << 20


def pull(model: str, *, revision: str | None = None, report: Report = silent) -> StoredModel:
    """Fetch a model of the hub into its cache; what is there already is not fetched again.

    model: "owner/name", "owner/name:Q4_K_M" or "owner/name:file.gguf", see `hub_name.parse_hub_name`
    revision: branch, tag or commit
    report: called with the progress; after an interruption, files that are complete are not fetched again
    Raises UsageError for what is no hub name, FileError if the hub has no such model, refuses it or cannot be reached,
    or if the disk has too little space.
    """
    if not looks_like_hub_name(model):
        raise UsageError(f"{model!r:.120} is not the name of a hub model; expected owner/name or owner/name:Q4_K_M.")
    found = with_sizes(locate(model, revision))
    _check_space(found)
    path = fetch(found, report=report)
    names = wanted_files(found)
    folder = path if path.is_dir() else path.parents[len(Path(names[0]).parts) - 1]
    there = [folder / name for name in names if (folder / name).is_file()]
    size = sum(file.stat().st_size for file in there)
    used = max((file.stat().st_atime for file in there), default=0.0)
    kind, quantization = (
        ("safetensors", of_folder(path)) if path.is_dir() else ("gguf", quantization_in(path.name) or "")
    )
    return StoredModel(found.name, kind, quantization, size, used, path, True, revision)


def _check_space(model: HubModel) -> None:
    """Raise FileError if the files that are not in the cache yet do not fit on its disk."""
    from huggingface_hub import try_to_load_from_cache

    missing = [
        name
        for name in wanted_files(model)
        if not isinstance(try_to_load_from_cache(model.repo, name, revision=model.revision), str)
    ]
    needed = sum(model.sizes.get(name, 0) for name in missing)
    folder = next(place for place in (cache_folder(), *cache_folder().absolute().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise FileError(
            f"{model.name}: {needed:,} bytes are still to fetch, but the disk of {folder} has {free:,} free; make room "
            "(`bitsmith list`, `bitsmith rm`), or set HF_HOME to a folder on another disk."
        )

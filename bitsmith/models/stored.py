"""The models on this machine: in the hub's cache, and in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.containers.hf_folder import CONFIG, read_object
from bitsmith.containers.safetensors_layout import INDEX_NAME
from bitsmith.errors import BitsmithError, FileError
from bitsmith.models.gguf_choice import GgufModel, models_among, short_name
from bitsmith.models.quantization import of_folder, of_gguf

if TYPE_CHECKING:
    from huggingface_hub.utils import CachedRepoInfo, CachedRevisionInfo, HFCacheInfo

_DEEPEST = 2  # folders below the given one
_MOST_FOLDERS = 2000
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine.

    name: what every command takes: "owner/name:Q4_K_M", or a path
    kind: "gguf" or "safetensors"
    quantization: in words: "Q4_K_M", "gptq, 4 bits", "BF16"; "" if it is not known
    size: bytes of its files
    last_used: time of the last access to one of its files, in seconds since 1970
    path: its folder, or its first file
    in_cache: whether it lies in the hub's cache
    revision: commit, if another revision than the usual one; else None
    complete: whether every file of its set is there
    """

    name: str
    kind: str
    quantization: str
    size: int
    last_used: float
    path: Path
    in_cache: bool
    revision: str | None = None
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "path": str(self.path)}


def list_models(folder: str | Path = ".") -> list[StoredModel]:
    """The models in the hub's cache, by name, and then those in `folder` and two levels below it.

    Raises FileError if there is no such folder.
    """
    return [*cached_models(), *models_in(Path(folder))]


def scan_cache() -> HFCacheInfo | None:
    """What lies in the hub's cache; None if there is no cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(cache_folder())
    except CacheNotFound:
        return None


def cache_folder() -> Path:
    """The folder of the hub's cache. It may not exist yet."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def cached_models() -> list[StoredModel]:
    """The models in the hub's cache, by name. Repositories without weights are left out."""
    cache = scan_cache()
    repos = [] if cache is None else [repo for repo in cache.repos if repo.repo_type == "model"]
    found: list[StoredModel] = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id.lower()):
        usual = usual_revision(repo)
        for revision in sorted(repo.revisions, key=lambda each: (each is not usual, each.commit_hash)):
            named = None if revision is usual else revision.commit_hash
            found += _in_snapshot(repo.repo_id, revision, named)
    return found


def usual_revision(repo: CachedRepoInfo) -> CachedRevisionInfo | None:
    """The revision that a name without a revision means: main, else the newest; None if the repository is empty."""
    ordered = sorted(repo.revisions, key=lambda each: ("main" in each.refs, each.last_modified), reverse=True)
    return ordered[0] if ordered else None


def sizes_of(revision: CachedRevisionInfo) -> dict[str, int]:
    """Size in bytes of the files of a snapshot, by their path in the repository."""
    return {_path_in(revision, file.file_path): file.size_on_disk for file in revision.files}


def _path_in(revision: CachedRevisionInfo, path: Path) -> str:
    return path.relative_to(revision.snapshot_path).as_posix()


def _in_snapshot(repo: str, revision: CachedRevisionInfo, named: str | None) -> Iterator[StoredModel]:
    sizes, folder = sizes_of(revision), revision.snapshot_path
    used = {_path_in(revision, file.file_path): file.blob_last_accessed for file in revision.files}
    whole = _folder_model(folder, sizes)
    if whole is not None:
        names = [path for path in sizes if not path.endswith(".gguf")]
        size, last = sum(sizes[path] for path in names), max(used[path] for path in names)
        yield StoredModel(repo, "safetensors", whole.quantization, size, last, folder, True, named, whole.complete)
    models = models_among(sizes)
    for model in models:
        last = max(used[part] for part in model.parts if part in used)
        name = f"{repo}:{short_name(model, models)}"
        quantization = model.tag or _quantization_inside(folder / model.first)
        complete = not model.missing
        yield StoredModel(name, "gguf", quantization, model.size, last, folder / model.first, True, named, complete)


@dataclass(frozen=True)
class _Whole:
    """A safetensors folder: its quantization, and whether all shards are there."""

    quantization: str
    complete: bool


def _folder_model(folder: Path, sizes: Mapping[str, int]) -> _Whole | None:
    """What a folder with these files is as a Hugging Face model; None if it has no safetensors files."""
    weights = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
    if not weights and INDEX_NAME not in sizes:
        return None
    complete = CONFIG in sizes and bool(weights)
    if INDEX_NAME in sizes and "model.safetensors" not in sizes:
        try:
            table = read_object(folder / INDEX_NAME).get("weight_map")
        except FileError:
            table = None
        complete = isinstance(table, dict) and all(isinstance(n, str) and n in sizes for n in table.values())
    return _Whole(of_folder(folder) or _dtype(folder), complete)


def _dtype(folder: Path) -> str:
    """The float type that config.json gives; "" if it gives none."""
    try:
        config = read_object(folder / CONFIG)
    except FileError:
        return ""
    return _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "")


def _quantization_inside(path: Path) -> str:
    """The quantization that a GGUF file's header gives; "" if it cannot be read."""
    from bitsmith.containers.gguf.reader import GgufSource

    try:
        with GgufSource(path) as source:
            return of_gguf(source.metadata)
    except BitsmithError:
        return ""


def models_in(folder: Path) -> list[StoredModel]:
    """The models in a folder and in the folders below it, two levels deep; hidden folders are left out.

    Raises FileError if there is no such folder.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder; give a folder that holds models.")
    found: list[StoredModel] = []
    for place in _folders(folder):
        files = {path.name: path.stat() for path in _files(place)}
        sizes = {name: status.st_size for name, status in files.items()}
        used = {name: status.st_atime for name, status in files.items()}
        whole = _folder_model(place, sizes)
        if whole is not None and CONFIG in sizes:
            size = sum(size for name, size in sizes.items() if not name.endswith(".gguf"))
            last = max(used.values())
            found.append(
                StoredModel(
                    str(place), "safetensors", whole.quantization, size, last, place, False, None, whole.complete
                )
            )
        found += [_local_gguf(place, model, used) for model in models_among(sizes)]
    return found


def _local_gguf(folder: Path, model: GgufModel, used: Mapping[str, float]) -> StoredModel:
    path = folder / model.first
    last = max(used[part] for part in model.parts if part in used)
    quantization = model.tag or _quantization_inside(path)
    return StoredModel(str(path), "gguf", quantization, model.size, last, path, False, None, not model.missing)


def _files(folder: Path) -> Iterable[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_file())


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and those below it, in order of their names; folders that cannot be read are left out."""
    waiting, seen = [(folder, 0)], 0
    while waiting and seen < _MOST_FOLDERS:
        place, depth = waiting.pop(0)
        try:
            with os.scandir(place) as entries:
                inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
        seen += 1
        yield place
        if depth < _DEEPEST:
            waiting += [(place / n, depth + 1) for n in inner if not n.startswith((".", "models--"))]

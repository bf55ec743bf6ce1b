"""`remove`: takes a model out of the hub's cache, and only out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.models.gguf_choice import choose, models_among
from bitsmith.models.hub_name import HubName, looks_like_hub_name, parse_hub_name
from bitsmith.models.stored import cache_folder, scan_cache, sizes_of

if TYPE_CHECKING:
    from huggingface_hub.utils import (
        CachedFileInfo,
        CachedRepoInfo,
        CachedRevisionInfo,
        DeleteCacheStrategy,
        HFCacheInfo,
    )


@dataclass(frozen=True)
class Removal:
    """What would be removed. `execute` does it.

    name: the model's name as it was given
    files: the files, by their path in the cache
    size: bytes that this frees
    """

    name: str
    files: tuple[Path, ...]
    size: int
    strategy: DeleteCacheStrategy = field(repr=False)

    def execute(self) -> None:
        """Remove the files, through huggingface_hub. Raises FileError if some of them stay."""
        try:
            self.strategy.execute()
        except OSError as error:
            raise FileError(f"{error.filename or self.name}: cannot be removed ({error.strerror or error}).") from error
        left = next((file for file in self.files if os.path.lexists(file)), None)
        if left is not None:
            raise FileError(f"{left}: cannot be removed; check its permissions.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "files": [str(file) for file in self.files], "bytes": self.size}


def remove(model: str, *, revision: str | None = None) -> Removal:
    """Remove a model from the hub's cache. Returns what was removed. See `find_removal`."""
    found = find_removal(model, revision=revision)
    found.execute()
    return found


def find_removal(model: str, *, revision: str | None = None) -> Removal:
    """What removing a model from the hub's cache would remove.

    model: "owner/name" for everything of a repository, "owner/name:Q4_K_M" or "owner/name:file.gguf" for one GGUF model
    revision: branch, tag or commit; None for all revisions
    Raises UsageError for a path or another wrong name, FileError if the cache has no such model, or if it leads out of
    the cache.
    """
    if os.path.exists(os.path.expanduser(model)):
        raise UsageError(
            f"{model:.120} is a path on this machine; only models in the hub's cache are removed. Delete it yourself, "
            "or give the name of a cached model, such as hf.co/owner/name."
        )
    if not looks_like_hub_name(model):
        raise UsageError(f"{model!r:.120} is not the name of a hub model; expected owner/name or owner/name:Q4_K_M.")
    name = parse_hub_name(model)
    cache = scan_cache()
    repo = _repo(cache, name.repo)
    if cache is None or repo is None:
        raise FileError(
            f"{name.repo} is not in the hub's cache, {cache_folder()}; `bitsmith list` shows what is there."
        )
    revisions = _revisions(repo, revision or name.revision)
    if name.file is None and name.tag is None:
        strategy = cache.delete_revisions(*(each.commit_hash for each in revisions))
        files = [file for each in revisions for file in each.files]
    else:
        files = list(_chosen(name, revisions))
        strategy = _strategy(cache, repo, files)
    _check_inside(strategy, Path(os.path.realpath(repo.repo_path.parent)))
    paths = sorted(file.file_path for file in files)
    return Removal(model, tuple(paths), int(strategy.expected_freed_size), strategy)


def _repo(cache: HFCacheInfo | None, repo_id: str) -> CachedRepoInfo | None:
    repos = [] if cache is None else [repo for repo in cache.repos if repo.repo_type == "model"]
    return next((repo for repo in repos if repo.repo_id.lower() == repo_id.lower()), None)


def _revisions(repo: CachedRepoInfo, revision: str | None) -> list[CachedRevisionInfo]:
    found = [each for each in repo.revisions if revision in (None, each.commit_hash) or revision in each.refs]
    if not found and revision is not None:
        known = ", ".join(ref for each in repo.revisions for ref in (*each.refs, each.commit_hash))
        raise FileError(f"{repo.repo_id} has no revision {revision!r} in the cache; it has {known}.")
    return found


def _chosen(name: HubName, revisions: list[CachedRevisionInfo]) -> Iterator[CachedFileInfo]:
    """The files of one GGUF model in every revision that has it. Raises FileError if none has it."""
    holding = [(each, models_among(sizes_of(each))) for each in revisions]
    everything = [model for _, models in holding for model in models]
    if not everything:
        raise FileError(f"{name.repo} has no GGUF files in the cache; leave what follows the colon away.")
    if name.file is None:
        wanted = set(choose(everything, name.tag, where=f"{name.repo} in the cache").parts)
    else:
        wanted = {part for model in everything if name.file in model.parts for part in model.parts}
    if not wanted:
        listed = ", ".join(dict.fromkeys(model.first for model in everything))
        raise FileError(f"{name.repo} has no file {name.file!r} in the cache; it has {listed}.")
    for revision in revisions:
        for file in revision.files:
            if file.file_path.relative_to(revision.snapshot_path).as_posix() in wanted:
                yield file


def _strategy(cache: HFCacheInfo, repo: CachedRepoInfo, files: list[CachedFileInfo]) -> DeleteCacheStrategy:
    """How to remove these files; the whole repository if no weights would be left in it."""
    chosen = {file.file_path for file in files}
    rest = [file for each in repo.revisions for file in each.files if file.file_path not in chosen]
    if not any(file.file_name.endswith((".gguf", ".safetensors")) for file in rest):
        return cache.delete_revisions(*(each.commit_hash for each in repo.revisions))
    try:
        return cache.delete_files(*files)
    except AttributeError:  # an older huggingface_hub
        raise UnsupportedError(
            "this version of huggingface_hub removes only whole repositories; update it (pip install -U "
            f"huggingface_hub), or give {repo.repo_id} alone."
        ) from None


def _check_inside(strategy: DeleteCacheStrategy, cache: Path) -> None:
    """Raise FileError if anything to be removed lies outside the cache, behind a link."""
    for path in (*strategy.repos, *strategy.snapshots, *strategy.refs, *strategy.blobs):
        real = Path(os.path.realpath(path))
        if cache not in real.parents:
            raise FileError(f"{path} leads to {real}, outside the hub's cache; remove it yourself.")

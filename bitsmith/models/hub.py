"""Fetches models from the Hugging Face hub: only safetensors, GGUF, configuration and tokenizer files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from bitsmith.containers.gguf.split import split_name, split_parts
from bitsmith.containers.hf_folder import CONFIG, TOKENIZER_FILES
from bitsmith.errors import FileError
from bitsmith.models.gguf_choice import GgufModel, choose, models_among, names_of, short_name
from bitsmith.models.hub_name import HubName, looks_like_hub_name, parse_hub_name
from bitsmith.system.progress import Report

__all__ = ["HubModel", "UnreachableError", "download", "explained", "fetch", "locate", "looks_like_hub_name"]

PATTERNS = ["*.safetensors", "*.safetensors.index.json", CONFIG, *TOKENIZER_FILES]
_NOT = ["consolidated*", "original/*", "*/*.safetensors"]  # the same weights in other layouts
_LOG = logging.getLogger(__name__)


class UnreachableError(FileError):
    """The hub cannot be reached: no network, offline mode, or the hub is down."""


@dataclass(frozen=True)
class HubModel:
    """A model of the hub, with the file that is taken.

    file: path of a GGUF file in the repository; None for the safetensors folder
    short: what may follow the colon for this file, "Q4_K_M"; "" for the safetensors folder
    sizes: size in bytes of the repository's files, by path; empty if the hub was not asked
    """

    repo: str
    file: str | None
    revision: str | None
    short: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of this model, for every command."""
        return f"{self.repo}:{self.short or self.file}" if self.file else self.repo


def download(model: str, revision: str | None = None, *, report: Report | None = None) -> Path:
    """Fetch a model, or find it in the cache. Returns its folder or its GGUF file.

    model: see `hub_name.parse_hub_name`; all parts of a split GGUF file are fetched
    report: called with the progress; None for the progress bars of huggingface_hub
    Raises UsageError for a name that cannot be one, FileError if the hub has no such model, refuses access, or cannot
    be reached.
    """
    return fetch(locate(model, revision), report=report)


def locate(model: str, revision: str | None = None) -> HubModel:
    """The file of the hub that a name means. Lists the repository, if the name gives no file.

    A repository with safetensors files is taken as a folder; else llama.cpp's choice among its GGUF files is taken, and
    logged. Without the hub, the copy in the cache is looked at. Raises as `download` does.
    """
    name = parse_hub_name(model)
    revision = revision or name.revision
    if name.file is not None:
        return HubModel(name.repo, name.file, revision)
    listing = _listed(name.repo, revision)
    sizes = listing.sizes
    if name.tag is None and (any(_is_weights(path) for path in sizes) or listing.lacks_models):
        return HubModel(name.repo, None, revision, sizes=sizes)
    if listing.lacks_models:
        raise UnreachableError(
            f"{name.repo} cannot be listed (no network, or offline mode), and the cache has no GGUF file of it; "
            "connect to the network, or give a local file."
        )
    models = models_among(sizes)
    if not models:
        raise FileError(_without_models(name, sizes))
    chosen = choose(models, name.tag, where=f"{name.repo} in the cache" if listing.from_cache else name.repo)
    short = short_name(chosen, models)
    if name.tag is None and len(models) > 1:
        _LOG.warning("%s holds several GGUF files: taking %s. Others: %s", name.repo, short, _others(models, short))
    return HubModel(name.repo, chosen.first, revision, short, sizes)


@dataclass(frozen=True)
class _Listing:
    """The files of a repository: size in bytes by path. from_cache: only those in the cache; the hub was not reached"""

    sizes: Mapping[str, int]
    from_cache: bool = False

    @property
    def lacks_models(self) -> bool:
        """Whether the cache alone was looked at, and holds no GGUF file."""
        return self.from_cache and not models_among(self.sizes)


def _others(models: list[GgufModel], taken: str) -> str:
    return ", ".join(each for each in names_of(models) if each != taken)


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors") and "/" not in path and not path.startswith("consolidated")


def _without_models(name: HubName, sizes: Mapping[str, int]) -> str:
    """What to say of a repository without GGUF files, or without any weights that are read."""
    if any(_is_weights(path) for path in sizes):
        return f"{name.repo} has no GGUF files, only safetensors; leave :{name.tag} away."
    pickles = [path for path in sizes if path.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    found = f"only {pickles[0]}, which is pickled and can run code" if pickles else "no weights"
    return f"{name.repo} has neither model.safetensors nor GGUF files, {found}; take another repository of this model."


def _listed(repo: str, revision: str | None) -> _Listing:
    """The files of a repository on the hub; without the hub, those in the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        with explained(repo, None, revision):
            tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision)
            return _Listing({entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)})
    except UnreachableError:
        folder = cached_snapshot(repo, revision)
        files = [] if folder is None else [path for path in folder.rglob("*") if path.is_file()]
        return _Listing({str(path.relative_to(folder)): path.stat().st_size for path in files if folder}, True)


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a repository in the hub's cache, whatever files it holds; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[CONFIG]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def fetch(model: HubModel, *, report: Report | None = None) -> Path:
    """Fetch a model's files, or find them in the cache. Returns its folder or its GGUF file. See `download`."""
    from huggingface_hub import hf_hub_download, snapshot_download

    repo, file, revision = model.repo, model.file, model.revision
    bar = _bar(model, report)
    whole = snapshot_download if bar is None else partial(snapshot_download, tqdm_class=bar)
    single = hf_hub_download if bar is None else partial(hf_hub_download, tqdm_class=bar)
    with explained(repo, file, revision):
        if file is None:
            return Path(whole(repo, revision=revision, allow_patterns=PATTERNS, ignore_patterns=_NOT))
        fetched = [Path(single(repo, name, revision=revision)) for name in wanted_files(model)]
    return next((path for path in fetched if path.name == Path(file).name), fetched[0])


def wanted_files(model: HubModel) -> list[str]:
    """Paths in the repository of the files that `fetch` fetches."""
    if model.file is not None:
        return split_names(model.file) or [model.file]
    wanted = [path for path in model.sizes if any(fnmatch(path, pattern) for pattern in PATTERNS)]
    return [path for path in wanted if not any(fnmatch(path, pattern) for pattern in _NOT)]


def with_sizes(model: HubModel) -> HubModel:
    """The model with the sizes of its repository's files, if the hub or the cache knows them."""
    return model if model.sizes else replace(model, sizes=_listed(model.repo, model.revision).sizes)


def wanted_bytes(model: HubModel) -> int:
    """Bytes of these files, as far as the hub told their sizes."""
    return sum(model.sizes.get(path, 0) for path in wanted_files(model))


def _bar(model: HubModel, report: Report | None) -> type[Any] | None:
    """The class of bars that makes huggingface_hub report to `report`; None for its own bars."""
    if report is None:
        return None
    from bitsmith.models.hub_progress import reporting_bar

    return reporting_bar(report, wanted_bytes(model), model.name)


@contextmanager
def explained(repo: str, file: str | None, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub into FileErrors that say what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise FileError(
            f"{repo} is gated: accept its terms on its hub page, then log in (`hf auth login`) or set HF_TOKEN."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileError(
            f"{repo}: the hub has no such model, or it is private; check the name, and log in for a private model."
        ) from error
    except RevisionNotFoundError as error:
        raise FileError(f"{repo} has no revision {revision!r}; check --revision.") from error
    except LocalEntryNotFoundError as error:
        raise UnreachableError(
            f"{repo} cannot be fetched (no network, or offline mode) and is not in the cache; "
            "connect to the network, or give a local folder."
        ) from error
    except EntryNotFoundError as error:
        if file is None:
            raise FileError(f"{repo} has no model.safetensors and no index of shards.") from error
        raise FileError(f"{repo} has no file {file!r}; check the name after the colon.") from error
    except HFValidationError as error:
        raise FileError(f"{repo} cannot be fetched from the hub: {error}") from error
    except _unreachable() as error:
        raise UnreachableError(
            f"{repo} cannot be fetched from the hub ({error}); check the network, or give a local folder or file."
        ) from error


def _unreachable() -> tuple[type[Exception], ...]:
    """Exceptions that mean the hub cannot be reached, with those of the HTTP library under huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    found = [vars(sys.modules[name])["HTTPError"] for name in ("httpx", "httpx2") if name in sys.modules]
    return (HfHubHTTPError, OSError, *found)


def split_names(file: str) -> list[str]:
    """Names of all parts of the split file that `file` belongs to; empty if the file is not split."""
    parts = split_parts(file)
    if parts is None:
        return []
    prefix, _, count = parts
    return [split_name(prefix, number, count) for number in range(1, count + 1)]

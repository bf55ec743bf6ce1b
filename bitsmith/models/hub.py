"""Fetches models from the Hugging Face hub: only safetensors, GGUF, configuration and tokenizer files."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitsmith.containers.gguf.split import split_name, split_parts
from bitsmith.containers.hf_folder import CONFIG, TOKENIZER_FILES
from bitsmith.errors import FileError, UsageError

PATTERNS = ["*.safetensors", "*.safetensors.index.json", CONFIG, *TOKENIZER_FILES]
_NOT = ["consolidated*", "original/*", "*/*.safetensors"]  # the same weights in other layouts

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>(?![./])(?!.*/\.)[\w./-]+\.gguf))?")


class UnreachableError(FileError):
    """The hub cannot be reached: no network, offline mode, or the hub is down."""


def looks_like_id(model: str) -> bool:
    """Whether `model` has the form "owner/name" or "owner/name:file.gguf"."""
    return _ID.fullmatch(model) is not None


def download(model: str, revision: str | None = None) -> Path:
    """Fetch a model, or find it in the cache. Returns its folder or its GGUF file.

    model: "owner/name" or "owner/name:file.gguf"; for a split file, the name of any part fetches all parts
    Raises FileError if the hub has no such model, refuses access, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    repo, file = parse_id(model)
    with explained(repo, file, revision):
        if file is None:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=PATTERNS, ignore_patterns=_NOT))
        first = Path(hf_hub_download(repo, file, revision=revision))
        for part in split_names(file):
            hf_hub_download(repo, part, revision=revision)
        return first


def parse_id(model: str) -> tuple[str, str | None]:
    """Repository and GGUF file (None if it names no file) of a hub id. Raises UsageError if it is no hub id."""
    match = _ID.fullmatch(model)
    if match is None:
        raise UsageError(f"{model!r} is not a hub id; expected owner/name or owner/name:file.gguf.")
    return match["repo"], match["file"]


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
            raise FileError(
                f"{repo} has no model.safetensors and no index of shards. If it holds GGUF files, name one of them: "
                f"{repo}:file.gguf."
            ) from error
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

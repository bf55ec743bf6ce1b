"""Calibration text from data sets of the Hugging Face hub: one text or JSON-lines file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bitsmith.errors import FileError, UnsupportedError

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./ -]+))?")
_LOCAL = (".txt", ".jsonl", ".ndjson", ".gguf", ".dat", ".md", ".json")
_READ = (".jsonl", ".ndjson", ".txt")


def looks_like_data_set(source: str) -> bool:
    """Whether `source` has the form "owner/name:FILE", or "owner/name" without the ending of a file name."""
    match = _ID.fullmatch(source)
    return match is not None and (match["file"] is not None or not source.lower().endswith(_LOCAL))


def download_text(source: str) -> Path:
    """Download the file that `source` names. If it names a data set only, `choose_file` chooses the file.

    Raises FileError if the hub does not have it, refuses it or cannot be reached; UnsupportedError if the data set
    has no text or JSON-lines file.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    refused: tuple[type[Exception], ...] = (
        *(HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError),
        *_transport_errors(),
    )
    match = _ID.fullmatch(source)
    assert match is not None, source
    repo, file = match["repo"], match["file"]
    try:
        chosen = file or choose_file(repo, HfApi().list_repo_files(repo, repo_type="dataset"))
        return Path(hf_hub_download(repo, chosen, repo_type="dataset"))
    except refused as error:
        reason = str(error).strip().split("\n")[0]
        raise FileError(
            f"--calibration {source}: there is no such file, and the hub does not give such a data set ({reason}); "
            "check the name, log in for a private data set (`hf auth login`), or give a local file."
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Network errors of the HTTP library that the installed huggingface_hub uses."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        if name in sys.modules:
            found.append(sys.modules[name].HTTPError)
    return tuple(found)


def choose_file(repo: str, files: list[str]) -> str:
    """The file of a data set to calibrate on: the first by name, but training splits come before others.

    Raises UnsupportedError if no file is text or JSON lines.
    """
    texts = sorted((f for f in files if f.lower().endswith(_READ)), key=lambda f: ("train" not in f.lower(), f))
    if not texts:
        kinds = sorted({Path(f).suffix for f in files if Path(f).suffix} - {".md"})
        raise UnsupportedError(
            f"--calibration {repo}: the data set has no .txt or .jsonl file (it has {', '.join(kinds) or 'none'}); "
            "save some of its rows as text or JSON lines, and give that file with --calibration FILE."
        )
    return texts[0]

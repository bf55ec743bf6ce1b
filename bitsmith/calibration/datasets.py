"""Calibration text from data sets of the Hugging Face hub: one plain or JSON-lines file of theirs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bitsmith.errors import FileError, UnsupportedError

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./ -]+))?")
_LOCAL = (".txt", ".jsonl", ".ndjson", ".gguf", ".dat", ".md", ".json")
_READ = (".jsonl", ".ndjson", ".txt")


def looks_like_data_set(source: str) -> bool:
    """Whether `source` has the form "owner/name" or "owner/name:FILE"; a name that ends like a file's does not."""
    match = _ID.fullmatch(source)
    return match is not None and (match["file"] is not None or not source.lower().endswith(_LOCAL))


def download_text(source: str) -> Path:
    """Fetch the file that `source` names, or a data set's only one, preferably of its training split.

    Raises FileError where the hub has it not, refuses it or cannot be reached, UnsupportedError where the data set
    has no file of text or JSON lines.
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
            f"--calibration {source}: there is no such file, and no such data set can be fetched from the hub "
            f"({reason}); check the name, log in for a private one (`hf auth login`), or give a local file."
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the HTTP library under huggingface_hub, whichever its version has, raises where there is no network."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        if name in sys.modules:
            found.append(sys.modules[name].HTTPError)
    return tuple(found)


def choose_file(repo: str, files: list[str]) -> str:
    """The file of a data set to calibrate on: a training split before others, then by name.

    Raises UnsupportedError where none is text or JSON lines.
    """
    texts = sorted((f for f in files if f.lower().endswith(_READ)), key=lambda f: ("train" not in f.lower(), f))
    if not texts:
        kinds = sorted({Path(f).suffix for f in files if Path(f).suffix} - {".md"})
        raise UnsupportedError(
            f"--calibration {repo}: the data set has no .txt or .jsonl file (it has {', '.join(kinds) or 'none'}); "
            "save some of its rows as text or JSON lines and give that: --calibration FILE."
        )
    return texts[0]

"""Data sets of the Hugging Face hub: one file of text or records."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bitsmith.errors import FileError, UnsupportedError

_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<file>[\w./ -]+))?")
_LOCAL = (".txt", ".jsonl", ".ndjson", ".gguf", ".dat", ".md", ".json", ".parquet")
_READ = ((".jsonl", ".ndjson", ".txt"), (".parquet",), (".json",))  # the first kind that a data set has is taken
_ABOUT = ("dataset_info", "dataset_dict", "state", "config", "package")  # names of .json files that hold no records


def looks_like_data_set(source: str) -> bool:
    """Whether `source` has the form "owner/name:FILE", or "owner/name" without the ending of a file name."""
    match = _ID.fullmatch(source)
    return match is not None and (match["file"] is not None or not source.lower().endswith(_LOCAL))


def download_text(source: str, option: str) -> Path:
    """Download the file that `source` names. If it names a data set only, `choose_file` chooses the file.

    option: the option that names the source, for messages
    Raises FileError if the hub does not have it, refuses it or cannot be reached; UnsupportedError if the data set
    has no file that bitsmith reads.
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
        chosen = file or choose_file(repo, HfApi().list_repo_files(repo, repo_type="dataset"), option)
        return Path(hf_hub_download(repo, chosen, repo_type="dataset"))
    except refused as error:
        reason = str(error).strip().split("\n")[0]
        raise FileError(
            f"{option}={source}: there is no such file, and the hub does not give such a data set ({reason}); "
            "check the name, log in for a private data set (`hf auth login`), or give a local file."
        ) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Network errors of the HTTP library that the installed huggingface_hub uses."""
    found: list[type[Exception]] = []
    for name in ("httpx", "httpx2"):
        if name in sys.modules:
            found.append(sys.modules[name].HTTPError)
    return tuple(found)


def choose_file(repo: str, files: list[str], option: str) -> str:
    """The file of a data set to read: JSON lines or text, else parquet, else JSON; training splits come first.

    Raises UnsupportedError if the data set has no such file.
    """
    for kinds in _READ:
        found = [f for f in files if f.lower().endswith(kinds) and not Path(f).name.startswith(_ABOUT)]
        if found:
            return min(found, key=lambda f: ("train" not in f.lower(), f))
    endings = sorted({Path(f).suffix for f in files if Path(f).suffix} - {".md"})
    raise UnsupportedError(
        f"{option}={repo}: the data set has no .txt, .jsonl, .parquet or .json file (it has "
        f"{', '.join(endings) or 'none'}); save some of its rows as text or JSON lines, and give that file."
    )

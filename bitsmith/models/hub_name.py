"""Names of models on the Hugging Face hub, as people write them and as other programs print them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitsmith.errors import UsageError

_HOSTS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<part>.*))?", re.ASCII | re.DOTALL)
_PAGE = re.compile(r"(?P<repo>[^/]+/[^/]+)/(?:blob|resolve|raw|tree)/(?P<revision>[^/]+)(?:/(?P<file>.+))?", re.DOTALL)
_TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_FILES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth")  # endings of files, not of repositories
_DEFAULT_TAG = "latest"  # Ollama's word for no tag


@dataclass(frozen=True)
class HubName:
    """A model of the hub.

    repo: "owner/name"
    file: path of a GGUF file in the repository; None if the name gives none
    tag: a quantization, such as "Q4_K_M" in any case; None if the name gives none
    revision: branch, tag or commit, if the name is the address of a page
    """

    repo: str
    file: str | None = None
    tag: str | None = None
    revision: str | None = None


def looks_like_hub_name(text: str) -> bool:
    """Whether `text` has the form of a hub name. What follows its colon may still be wrong."""
    if _HOSTS.fullmatch(text):
        return True
    match = _ID.fullmatch(text)
    return match is not None and (match["part"] is not None or not text.lower().endswith(_FILES))


def parse_hub_name(text: str) -> HubName:
    """Read "owner/name", "owner/name:Q4_K_M", "owner/name:file.gguf", each also after "hf.co/", or a page's address.

    Raises UsageError for anything else, with what is wrong.
    """
    host = _HOSTS.fullmatch(text)
    rest = text if host is None else re.split(r"[?#]", host["rest"], maxsplit=1)[0].strip("/")
    page = None if host is None else _PAGE.fullmatch(rest)
    name = rest if page is None else page["repo"]
    match = _ID.fullmatch(name)
    if match is None:
        raise UsageError(
            f"{text!r:.120} is not the name of a hub model; expected owner/name, owner/name:Q4_K_M or "
            "owner/name:file.gguf."
        )
    if page is not None:
        file = page["file"] if page["file"] and page["file"].lower().endswith(".gguf") else None
        return HubName(match["repo"], None if file is None else _checked(text, file), None, page["revision"])
    part = match["part"]
    if part is None or part.lower() == _DEFAULT_TAG:
        return HubName(match["repo"])
    if part.lower().endswith(".gguf"):
        return HubName(match["repo"], _checked(text, part))
    if not _TAG.fullmatch(part):
        raise UsageError(
            f"{text!r:.120}: {part!r:.80} after the colon is neither a quantization nor a GGUF file; expected for "
            f"instance {match['repo']}:Q4_K_M or {match['repo']}:file.gguf."
        )
    return HubName(match["repo"], tag=part)


def _checked(text: str, file: str) -> str:
    """The path of a file. Raises UsageError if it leaves the repository."""
    steps = file.split("/")
    if "\\" in file or not file.isprintable() or any(step in ("", ".", "..") for step in steps):
        raise UsageError(
            f"{text!r:.120}: {file!r:.80} is not a file in a repository; give its path as the hub shows it."
        )
    return file

"""Domains: the texts of a comparison by name, cut into windows, with the document that each scored token belongs to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.errors import UsageError, quoted
from bitsmith.evaluation.measure import TextWindows, Vocabulary, read_windows
from bitsmith.evaluation.windows import Windows, check_context
from bitsmith.models.tokenizer.vocabulary import piece
from bitsmith.reference.texts import evaluation_text
from bitsmith.system.progress import Report, silent
from bitsmith.texts.sources import Texts, open_texts

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import Tokenizer

LEAST_DOCUMENTS = 20  # with fewer, the errors are over paragraphs, and with fewer paragraphs over windows
_NAMED = re.compile(r"(?P<name>[^\W\d_][\w .+-]{0,39})=(?P<text>.+)", re.DOTALL)
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


@dataclass(frozen=True)
class Domain:
    """One text of a comparison, by the user's name for it."""

    name: str
    texts: Texts


@dataclass(frozen=True)
class DomainTokens:
    """A domain as tokens of one model.

    clusters: int32 [tokens]; tokens with the same number belong together
    unit: what a cluster is: "documents", "paragraphs" or "windows"
    """

    name: str
    text: str
    text_sha256: str
    windows: Windows
    clusters: np.ndarray
    unit: str
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.windows.targets.size)

    @property
    def sha256(self) -> str:
        """Hash of the windows: of all token ids and of how they are cut."""
        digest = hashlib.sha256(f"windows of {self.windows.context}, the second half scored:".encode())
        digest.update(np.ascontiguousarray(self.windows.tokens, "<i8").data)
        return digest.hexdigest()


def open_domains(named: Sequence[str | Path]) -> tuple[Domain, ...]:
    """The domains of `--text NAME=FILE` and `--text FILE`; the built-in text if there is none.

    Raises UsageError if a name or the same text is given twice, FileError for a text that cannot be used.
    """
    found: list[Domain] = []
    for each in named or ("default",):
        match = None if _is_file(each) else _NAMED.fullmatch(str(each))
        name, source = (match["name"].strip(), match["text"]) if match else (None, each)
        texts = open_texts([source], option="--text", built_in=evaluation_text)
        name = name or (str(each) if each == "default" else Path(texts.name).stem[:40])
        if any(domain.name == name for domain in found):
            raise UsageError(f"--text={quoted(each)}: there are two texts called {name}; give NAME=FILE.")
        same = next((domain.name for domain in found if domain.texts.sha256() == texts.sha256()), None)
        if same is not None:
            raise UsageError(
                f"--text={quoted(each)}: {name} is the same text as {same}, and would count twice; leave one out."
            )
        found.append(Domain(name, texts))
    return tuple(found)


def _is_file(name: str | Path) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError):
        return False


def domain_tokens(
    model: Vocabulary, domain: Domain, *, context: int, max_windows: int | None, report: Report = silent
) -> DomainTokens:
    """Tokens of a domain for the original.

    Raises UsageError for a wrong context, FileError for a text that is shorter than one window.
    """
    check_context(context, model.config.context, model.name)
    read = read_windows(model, domain.texts, context=context, max_windows=max_windows, report=report)
    clusters, unit = _clusters(read, model)
    return DomainTokens(domain.name, domain.texts.name, domain.texts.sha256(), read.windows, clusters, unit, read.notes)


def _clusters(read: TextWindows, model: Vocabulary) -> tuple[np.ndarray, str]:
    windows = read.windows
    places = np.arange(windows.tokens.size).reshape(windows.tokens.shape)[:, windows.first + 1 :].reshape(-1)
    for unit, starts in (("documents", read.starts), ("paragraphs", None)):
        begun = paragraph_starts(windows.tokens.reshape(-1), model) if starts is None else starts
        found = np.unique(np.searchsorted(begun, places, side="right"), return_inverse=True)[1]
        if found.size and found.max() + 1 >= LEAST_DOCUMENTS:
            return found.astype(np.int32), unit
    return np.repeat(np.arange(len(windows), dtype=np.int32), windows.targets.shape[1]), "windows"


def paragraph_starts(ids: np.ndarray, model: Vocabulary) -> np.ndarray:
    """Places in `ids`, int64, where a paragraph begins: its first token that is not blank, behind a blank line."""
    tokenizer: Tokenizer = model.tokenizer  # type: ignore[assignment]
    shapes = {}
    for token in np.unique(ids).tolist():
        text = piece(tokenizer.vocabulary, token) if token < tokenizer.size else b""
        shapes[token] = (
            _BLANK_LINE.search(text) is not None,
            text.lstrip(b" \t\r").startswith(b"\n"),
            b"\n" in text[len(text.rstrip(b" \t\r\n")) :],
            not text.strip(b" \t\r\n"),
        )
    starts, line_ended, between = [0], False, False
    for place, token in enumerate(ids.tolist()):
        blank, leads, trails, empty = shapes[token]
        if between and not empty:  # several blank lines end one paragraph, and begin one
            starts.append(place)
            between = False
        between = between or blank or (line_ended and leads)
        line_ended = trails or (line_ended and empty)
    return np.array(starts, np.int64)

"""Whether a text that is measured on was calibrated on: shingles of words that both have.

A shingle is 13 words in a row without regard to case, as in Brown et al. 2020 (appendix C). Texts of one kind share a
few of them (licences, quotations), so that only a share above MOST_SHARED is an error,
and one above NOTED_SHARED a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsmith.comparison.texts import Domain
from bitsmith.errors import UsageError
from bitsmith.reference.texts import calibration_text
from bitsmith.texts.records import Chat
from bitsmith.texts.sources import Texts, open_texts

WORDS = 13
MOST_SHARED = 0.01
NOTED_SHARED = 0.001
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; hashes are polynomials in it modulo 2^64
_NO_TEXT = (".gguf", ".dat")  # importance files
_SELF = "self"


@dataclass(frozen=True)
class Overlap:
    """Share of a text's shingles that a calibration text has too, and the first of them."""

    text: str
    calibration: str
    share: float
    example: str


def check_overlap(
    domains: Sequence[Domain], calibration: Sequence[str | Path], *, option: str = "--calibration"
) -> tuple[str, ...]:
    """Notes about texts that share a little. Raises UsageError for one that was calibrated on.

    calibration: names as in --calibration; importance files and "self" have no text to look at
    option: what named them, for messages
    """
    names = [name for name in calibration if name != _SELF and not str(name).lower().endswith(_NO_TEXT)]
    notes = []
    for name in names:
        texts = open_texts([name], option=option, built_in=calibration_text)
        known = np.unique(np.concatenate([shingles(words)[0] for words in _documents(texts)]))
        for domain in domains:
            found = _overlap(domain, texts.name, known)
            if found.share > MOST_SHARED:
                raise UsageError(
                    f"the text {domain.name} cannot be measured on: {100 * found.share:.1f} % of it stands in the "
                    f"calibration text {found.calibration}, for instance {found.example!r}. Give another --text or "
                    f"another {option}."
                )
            if found.share > NOTED_SHARED:
                notes.append(
                    f"{100 * found.share:.2g} % of the text {domain.name} stands in the calibration text "
                    f"{found.calibration}, for instance {found.example!r}"
                )
    return tuple(notes)


def _overlap(domain: Domain, calibration: str, known: np.ndarray) -> Overlap:
    total = shared = 0
    example = ""
    for words in _documents(domain.texts):
        hashes, _ = shingles(words)
        same = np.isin(hashes, known)
        total, shared = total + len(hashes), shared + int(same.sum())
        if not example and same.any():
            first = int(np.flatnonzero(same)[0])
            example = " ".join(words[first : first + WORDS])
    return Overlap(domain.name, calibration, shared / total if total else 0.0, example)


def shingles(words: Sequence[str]) -> tuple[np.ndarray, int]:
    """Hash of every 13 words in a row, uint64, and the number of words."""
    count = len(words) - WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64), len(words)
    numbers: dict[str, int] = {}
    for word in words:
        numbers.setdefault(word, int.from_bytes(_digest(word), "little"))
    each = np.array([numbers[word] for word in words], np.uint64)
    hashes = np.zeros(count, np.uint64)
    for place in range(WORDS):
        hashes = hashes * _FACTOR + each[place : place + count]
    return hashes, len(words)


def _digest(word: str) -> bytes:
    from hashlib import blake2b

    return blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _documents(texts: Texts) -> Iterable[list[str]]:
    for document in texts.documents():
        content = document.content
        if isinstance(content, Chat):
            content = "\n".join(str(message.get("content", "")) for message in content.messages)
        yield _WORD.findall(content.lower())

"""Whether a text that is measured on was calibrated on: shingles of words that both have.

A shingle is 13 words in a row without regard to case, as in Brown et al. 2020 (appendix C); a record with fewer words
is one whole. A Chinese or Japanese character counts as a word. Texts of one kind share a few of them
(licences, quotations), so that only a share above MOST_SHARED is an error, and one above NOTED_SHARED a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsmith.calibration.sources import own_text
from bitsmith.comparison.texts import Domain
from bitsmith.errors import UsageError
from bitsmith.reference.texts import built_in_name, calibration_text
from bitsmith.texts.records import Chat
from bitsmith.texts.sources import DEFAULT, Texts, open_texts

WORDS = 13
LEAST_WORDS = 4  # what is shorter stands anywhere by chance
MOST_SHARED = 0.01
NOTED_SHARED = 0.001
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese characters
_WORD = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; hashes are polynomials in it modulo 2^64
_NO_TEXT = (".gguf", ".dat")  # importance files
_SELF = "self"
_OWN = own_text("")


@dataclass(frozen=True)
class Overlap:
    """Share of a text's shingles that a calibration text has too, and the first of them. total: number of shingles"""

    text: str
    calibration: str
    total: int
    share: float
    example: str


def check_overlap(
    domains: Sequence[Domain],
    calibration: Sequence[str | Path],
    scored: Mapping[str, str] | None = None,
    *,
    option: str = "--calibration",
) -> tuple[str, ...]:
    """Notes about texts that share a little or are too short to tell. Raises UsageError for one that was calibrated on.

    calibration: names as in --calibration; importance files and "self" have no text to look at
    scored: the part of each text that is measured on, by the domain's name; the larger share counts
    option: what named the calibration, for messages
    """
    names = [name for name in calibration if name != _SELF and not str(name).lower().endswith(_NO_TEXT)]
    notes = []
    for name in names:
        texts = open_texts([name], option=option, built_in=calibration_text)
        known = np.unique(np.concatenate([shingles(words)[0] for words in _documents(texts)]))
        for domain in domains:
            found = _overlap(domain, texts.name, known, (scored or {}).get(domain.name))
            if not found.total or not known.size:
                short = texts.name if found.total else domain.name
                notes.append(
                    f"whether the text {domain.name} stands in the calibration text {texts.name} could not be checked: "
                    f"{short} has no {LEAST_WORDS} words in a row"
                )
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


def check_recorded(
    domains: Sequence[Domain], recorded: Sequence[str], given: Sequence[str | Path], scored: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check what a file says that it was calibrated on: notes, and names that could not be opened.

    recorded: names without folders, or of the built-in text, or of the model's own
    given: names that were checked already
    scored: see `check_overlap`
    Raises UsageError for a text that was calibrated on.
    """
    checked = {str(name) for name in given} | {Path(name).name for name in given}
    places: list[str] = []
    unknown: list[str] = []
    for name in recorded:
        if name == built_in_name():
            places += [] if DEFAULT in checked else [DEFAULT]
        elif name.endswith(_OWN):  # the model wrote it
            continue
        elif name not in checked and name.partition(":")[0] not in checked:
            there = Path(name).is_file() and not name.lower().endswith(_NO_TEXT)
            (places if there else unknown).append(name)
    return check_overlap(domains, places, scored), tuple(unknown)


def _overlap(domain: Domain, calibration: str, known: np.ndarray, scored: str | None) -> Overlap:
    total, share, example = _shared(_documents(domain.texts), known)
    if scored is not None:
        part = _shared([_words(scored)], known)
        if part[1] > share:
            total, share, example = part
    return Overlap(domain.name, calibration, total, share, example)


def _shared(documents: Iterable[list[str]], known: np.ndarray) -> tuple[int, float, str]:
    """Number of shingles, the share of known ones, and the first of these."""
    total = shared = 0
    example = ""
    for words in documents:
        hashes, _ = shingles(words)
        same = np.isin(hashes, known)
        total, shared = total + len(hashes), shared + int(same.sum())
        if not example and same.any():
            first = int(np.flatnonzero(same)[0])
            example = " ".join(words[first : first + WORDS])
    return total, shared / total if total else 0.0, example


def shingles(words: Sequence[str]) -> tuple[np.ndarray, int]:
    """Hash of every 13 words in a row, uint64, and the number of words. Fewer words, from 4 on, have one hash."""
    if len(words) < LEAST_WORDS:
        return np.empty(0, np.uint64), len(words)
    numbers: dict[str, int] = {}
    for word in words:
        numbers.setdefault(word, int.from_bytes(_digest(word), "little"))
    each = np.array([numbers[word] for word in words], np.uint64)
    length = min(WORDS, len(words))
    count = len(words) - length + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(length):
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
        yield _words(content)


def _words(content: str) -> list[str]:
    return _WORD.findall(content.lower())

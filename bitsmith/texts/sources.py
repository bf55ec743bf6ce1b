"""What the names of texts mean: files, data sets of the hub, the built-in text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitsmith.errors import FileError, quoted
from bitsmith.reference.texts import built_in_name
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.texts.entries import READERS, Entry
from bitsmith.texts.records import Chat, read_record

DEFAULT = "default"  # names the built-in text
MOST_TEXT = 64 << 20  # bytes of a plain text, which is encoded whole
_EXPECTED = (
    "expected UTF-8 text, a .jsonl, .json or .parquet file of chats or texts, a data set of the hub (owner/name), "
    f'"{DEFAULT}"'
)
_FURTHER = {"--calibration": ', "self" or an importance file (.gguf, .dat)'}
_REPORT_EVERY = 256  # records


@dataclass(frozen=True)
class Document:
    """One text or chat of a source. where: its place, for messages"""

    where: str
    content: str | Chat


@dataclass(frozen=True)
class PlainText:
    """A text that is one document. where: its path"""

    name: str
    where: str
    content: str

    def documents(self, report: Report = silent) -> Iterator[Document]:
        """The text."""
        yield Document(self.where, self.content)

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add the text's bytes to a hash."""
        digest.update(self.content.encode())


@dataclass(frozen=True)
class Records:
    """A file of records, read anew each time."""

    name: str
    path: Path
    read: Callable[[Path], Iterator[Entry]]

    def documents(self, report: Report = silent) -> Iterator[Document]:
        """One document for each record, in the file's order. Raises FileError if the file has none with content."""
        empty, seen = True, 0
        for seen, entry in enumerate(self.read(self.path), start=1):
            if seen % _REPORT_EVERY == 1:
                report(Progress("read", min(entry.done, entry.total), entry.total, "of the text", self.name))
            content = read_record(entry.record, entry.where)
            if _has_words(content):
                empty = False
                yield Document(entry.where, content)
        if empty:
            what = "all chats and texts are empty" if seen else "the text is empty"
            raise FileError(f"{self.path}: {what}; give a file with text.")

    def hash_into(self, digest: hashlib._Hash) -> None:
        """Add the file's bytes to a hash."""
        with self.path.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)


def _has_words(content: str | Chat) -> bool:
    return bool(content.messages) if isinstance(content, Chat) else bool(content.strip())


@dataclass(frozen=True)
class Texts:
    """Several sources, one after the other."""

    sources: tuple[PlainText | Records, ...]

    @property
    def name(self) -> str:
        """The names of all sources: "a.txt + b.jsonl"."""
        return " + ".join(source.name for source in self.sources)

    def documents(self, report: Report = silent) -> Iterator[Document]:
        """All documents in order. report: called while files of records are read"""
        for source in self.sources:
            yield from source.documents(report)

    def sha256(self) -> str:
        """Hash of the bytes of all sources in order."""
        digest = hashlib.sha256()
        for source in self.sources:
            source.hash_into(digest)
        return digest.hexdigest()


def names_of(given: str | Path | Sequence[str | Path] | None) -> tuple[str | Path, ...]:
    """The names in an option that takes one text or several."""
    return (given,) if isinstance(given, str | Path) else tuple(given or ())


def open_texts(names: Sequence[str | Path], *, option: str, built_in: Callable[[], str]) -> Texts:
    """The texts with these names, in order. Plain texts are read now, files of records later and piece by piece.

    names: files of UTF-8 text; .jsonl, .ndjson, .json and .parquet files of records, see `records`; data sets of the
        hub ("owner/name", "owner/name:FILE"); "default"; empty for the built-in text alone
    option: the option that gave the names, for messages: "--text"
    built_in: gives the built-in text
    Raises FileError for a text that cannot be read, is empty, too large or not UTF-8.
    """
    return Texts(tuple(_open(name, option, built_in) for name in names or (DEFAULT,)))


def _open(name: str | Path, option: str, built_in: Callable[[], str]) -> PlainText | Records:
    if name == DEFAULT:
        return PlainText(built_in_name(), built_in_name(), built_in())
    path, shown = _found(str(name), option)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        return PlainText(shown, str(path), read_utf8(path))
    if not path.is_file():
        raise FileError(f"{path}: records can be read from a regular file only, and this is none; save it as a file.")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise FileError(f"{path}: the text cannot be read ({error.strerror}); check its permissions.") from error
    return Records(shown, path, reader)


def _found(name: str, option: str) -> tuple[Path, str]:
    """The file of a text, and its name for records. A file of a hub data set is downloaded."""
    path = Path(name).expanduser()
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # too long a name, a zero byte
        exists = folder = False
    if exists and not folder:
        return path, path.name
    from bitsmith.texts.hub import download_text, looks_like_data_set

    if not exists and looks_like_data_set(name):
        file = download_text(name, option)
        return file, f"{name.partition(':')[0]}:{file.name}"
    what = "is a folder" if folder else "there is no such file"
    raise FileError(f"{option}={quoted(name)}: {what}; {_EXPECTED}{_FURTHER.get(option, '')}.")


def read_utf8(path: Path) -> str:
    """The text of a file with its own line ends.

    Raises FileError if the file cannot be read, is empty, has more than MOST_TEXT bytes, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_TEXT + 1)
    except OSError as error:
        raise FileError(f"{path}: the text cannot be read ({error.strerror}); check the path.") from error
    if len(data) > MOST_TEXT:
        raise FileError(
            f"{path}: a plain text may have {MOST_TEXT >> 20} MiB, and this has more; give a part of it, or JSON lines "
            '({"text": ...}), which are read line by line.'
        )
    if not data.strip():
        raise FileError(f"{path}: the text is empty; give a file of UTF-8 text.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path}: the text must be UTF-8, but byte 0x{data[error.start]:02x} at position {error.start} is not "
            f"({error.reason}); convert the file to UTF-8."
        ) from error

"""The ledger: every measurement ever made, in one SQLite file of the user's data folder.

A measurement is found again by what decided it: the model's files, the original's, the text, how it was measured, and
the version of bitsmith. Several runs may use one ledger at once: SQLite orders their writes (write-ahead log), and each
write is one short transaction.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bitsmith.errors import FileError
from bitsmith.system.folders import data_folder
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.version import __version__

_SCHEMA = 1
_BUSY_SECONDS = 60.0
_PAUSE = 0.02  # seconds between tries
_TABLES = """
CREATE TABLE IF NOT EXISTS measurements (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, model TEXT NOT NULL, model_sha256 TEXT NOT NULL,
    original TEXT NOT NULL, original_sha256 TEXT NOT NULL, text TEXT NOT NULL, text_sha256 TEXT NOT NULL,
    definition TEXT NOT NULL, version TEXT NOT NULL, created REAL NOT NULL, figures TEXT NOT NULL, data BLOB);
CREATE TABLE IF NOT EXISTS hashes (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, changed INTEGER NOT NULL,
    inode INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_model ON measurements (model_sha256);
"""
_NAMES = ("key", "kind", "model", "model_sha256", "original", "original_sha256", "text", "text_sha256")
_COLUMNS = (*_NAMES, "definition", "version", "created", "figures", "data")


@dataclass(frozen=True)
class What:
    """What is measured. kind: one of `KINDS`; definition: how, in words that never change meaning"""

    kind: str
    model: str
    model_sha256: str
    original: str = ""
    original_sha256: str = ""
    text: str = ""
    text_sha256: str = ""
    definition: str = ""

    @property
    def key(self) -> str:
        """Everything but the names, and the version."""
        parts = (self.kind, self.model_sha256, self.original_sha256, self.text_sha256, self.definition, __version__)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Kept:
    """A measurement of the ledger. created: seconds since 1970; figures: plain values; data: arrays, see `kind`"""

    what: What
    version: str
    created: float
    figures: dict[str, Any] = field(default_factory=dict)
    data: bytes = b""


def usual_ledger() -> Path:
    """Where the ledger lies unless the user names another file."""
    return data_folder() / "ledger.sqlite"


class Ledger:
    """An open ledger. Raises FileError where the file is no ledger, cannot be written, or the disk is full."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = usual_ledger() if path is None else Path(path).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{self.path.parent} cannot be made ({error.strerror}); give another --ledger.") from error
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _SCHEMA):
                self._db.close()
                raise FileError(f"{self.path}: a ledger of another version of bitsmith; give another --ledger.")
            self._use_write_ahead_log()
            self._db.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last, not the file
            self._db.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={_SCHEMA}")
            self._db.execute("COMMIT")

    def _use_write_ahead_log(self) -> None:
        """The first run that opens a ledger switches it. There SQLite does not wait for other runs, so we do."""
        given_up = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > given_up:
                    raise
                time.sleep(_PAUSE)

    def get(self, what: What) -> Kept | None:
        """A measurement, if there is one."""
        with self._explained():
            row = self._db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM measurements WHERE key = ?", (what.key,)
            ).fetchone()
        return None if row is None else _kept(row)

    def put(self, what: What, figures: dict[str, Any], data: bytes = b"") -> None:
        """Keep a measurement. One with the same key is replaced."""
        values = [vars(what).get(name, None) for name in _COLUMNS]
        values[0], values[9], values[10] = what.key, __version__, time.time()
        values[11], values[12] = json.dumps(figures), data
        marks = ", ".join("?" * len(_COLUMNS))
        with self._explained():
            self._db.execute(f"INSERT OR REPLACE INTO measurements ({', '.join(_COLUMNS)}) VALUES ({marks})", values)

    def measurements(self, kind: str | None = None) -> Iterator[Kept]:
        """All measurements without their arrays, the oldest first."""
        shown = ", ".join(name if name != "data" else "x''" for name in _COLUMNS)
        chosen, words = ("", ()) if kind is None else (" WHERE kind = ?", (kind,))
        with self._explained():
            rows = self._db.execute(f"SELECT {shown} FROM measurements{chosen} ORDER BY created, rowid", words)
            yield from map(_kept, rows.fetchall())

    def sha256(self, files: Sequence[Path], report: Report = silent) -> str:
        """The hash of a file, or one of several: of their names and bytes. What has not changed is not read again."""
        if len(files) == 1:
            return self._file_sha256(files[0])
        digest = hashlib.sha256()
        for number, path in enumerate(sorted(files, key=lambda each: each.name)):
            report(Progress("hash", number, len(files), "files", path.name))
            digest.update(f"{path.name} {self._file_sha256(path)}\n".encode())
        return digest.hexdigest()

    def _file_sha256(self, path: Path) -> str:
        real = os.path.realpath(path)
        try:
            found = os.stat(real)
            signature = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
            with self._explained():
                row = self._db.execute(
                    "SELECT sha256 FROM hashes"
                    " WHERE path = ? AND size = ? AND modified = ? AND changed = ? AND inode = ?",
                    (real, *signature),
                ).fetchone()
            if row is not None:
                return str(row[0])
            with open(real, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise FileError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
        with self._explained():
            self._db.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)", (real, *signature, sha256))
        return sha256

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of SQLite in words."""
        try:
            yield
        except sqlite3.Error as error:
            if "full" in str(error):
                advice = "make room on the disk, or give another --ledger; what was measured before is kept"
            elif "locked" in str(error):
                advice = (
                    f"another run has held it for {_BUSY_SECONDS:.0f} seconds; wait for that, or give another --ledger"
                )
            elif "not a database" in str(error) or "malformed" in str(error):
                advice = "it is no ledger, or damaged; give another --ledger, or move it away"
            else:
                advice = "check its permissions, or give another --ledger"
            raise FileError(f"{self.path}: the ledger cannot be used ({error}); {advice}.") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _kept(row: Sequence[Any]) -> Kept:
    values = dict(zip(_COLUMNS, row, strict=True))
    what = What(*(values[name] for name in _COLUMNS[1:9]))
    return Kept(what, values["version"], values["created"], json.loads(values["figures"]), values["data"] or b"")

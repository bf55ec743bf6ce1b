"""Reads the records of JSON lines, JSON and parquet files one after the other, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from bitsmith.errors import FileError, UsageError
from bitsmith.texts.records import known_keys, refuse_columns

MOST_ENTRY = 8 << 20  # bytes of one record
_STEP = 1 << 16  # characters read at once
_ROWS = 64  # rows of a parquet file in memory at once
_TOO_LONG = f"longer than {MOST_ENTRY >> 20} MiB; cut it into several"


@dataclass(frozen=True)
class Entry:
    """One record. where: file and line; done: bytes or rows up to here, of `total`"""

    where: str
    record: Any
    done: int
    total: int


def json_lines(path: Path) -> Iterator[Entry]:
    """One JSON value on each line; blank lines are skipped. An array is read by `json_values`.

    Raises FileError, with the line, for what is not JSON or not UTF-8, and for a line above MOST_ENTRY.
    """
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        number, blank = 0, True
        while line := file.readline(MOST_ENTRY + 1):
            number, done = number + 1, done + len(line)
            where = f"{path}, line {number}"
            if len(line) > MOST_ENTRY:
                raise FileError(f"{where}: {_TOO_LONG} lines.")
            text = _decoded(line, where, "utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            if blank and text.lstrip().startswith("["):
                break
            blank = False
            yield Entry(where, _parsed(text, where), done, total)
        else:
            return
    yield from json_values(path)


def _decoded(line: bytes, where: str, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise FileError(
            f"{where}: the file must be UTF-8, but byte 0x{line[error.start]:02x} at position {error.start} of the "
            f"line is not ({error.reason}); convert it to UTF-8."
        ) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: not JSON ({error}); expected one JSON object on each line.") from error


def json_values(path: Path) -> Iterator[Entry]:
    """The values of a JSON array, or JSON values one after the other (a single object too).

    Raises FileError, with the line, for what is not JSON or not UTF-8, and for a value above MOST_ENTRY.
    """
    total = path.stat().st_size
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _Reader(path, file)
        array = reader.next() == "["
        if array:
            reader.skip()
        while (character := reader.next()) not in (("]",) if array else ("",)):
            where = reader.where
            value = reader.value()
            yield Entry(where, value, reader.done, total)
            if array and (character := reader.next()) != "]":
                reader.expect(",", character)
        if array:
            reader.skip()
            reader.expect("", reader.next())


class _Reader:
    """JSON values out of a text file, of which only the present value is in memory."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder()
        self._buffer, self._at = "", 0
        self._line = 1
        self.done = 0  # characters read, which is close to the number of bytes

    @property
    def where(self) -> str:
        """File and line of the present place."""
        return f"{self._path}, line {self._line}"

    def next(self) -> str:
        """The next character that is not blank, which stays; "" at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self.skip()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass one character."""
        self._line += self._buffer[self._at] == "\n"
        self._at += 1

    def expect(self, wanted: str, found: str) -> None:
        """Raise FileError unless the next character is as the array needs it; pass it."""
        if found != wanted:
            what = f"expected {wanted!r} or ']'" if wanted else "expected nothing after the end of the array"
            raise FileError(f"{self.where}: not JSON: {what}, found {found!r}.")
        if wanted:
            self.skip()

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except RecursionError as error:
                raise FileError(f"{self.where}: not JSON that can be read: nested too deep.") from error
            except ValueError as error:
                if len(self._buffer) - self._at > MOST_ENTRY:
                    raise FileError(f"{self.where}: the value that begins here is not JSON, or {_TOO_LONG}.") from error
                if not self._more():
                    raise FileError(f"{self._where_of(error)}: not JSON ({error}).") from error
                continue
            self._line += self._buffer.count("\n", self._at, end)
            self._at = end
            return value

    def _where_of(self, error: ValueError) -> str:
        at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
        return f"{self._path}, line {self._line + self._buffer.count(chr(10), self._at, at)}"

    def _more(self) -> bool:
        """Read on, each time twice as much, so that a long value takes a few attempts. False at the end."""
        try:
            piece = self._file.read(max(_STEP, len(self._buffer) - self._at))
        except UnicodeDecodeError as error:
            raise FileError(f"{self.where}: not UTF-8 from here on ({error.reason}); convert the file.") from error
        self._buffer, self._at = self._buffer[self._at :] + piece, 0
        self.done += len(piece)
        return bool(piece)


def parquet_rows(path: Path) -> Iterator[Entry]:
    """The rows of a parquet file, of which a few are in memory at once. Columns of no known shape are not read.

    Raises UsageError if pyarrow is not installed, FileError for a damaged file and for unknown columns.
    """
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"{path}: reading parquet files needs pyarrow: pip install 'bitsmith[data]'.") from error
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            columns = [name for name in names if name in known_keys()]
            if not columns:
                raise refuse_columns(names, str(path))
            total, done = file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                if batch.nbytes > _ROWS * MOST_ENTRY:
                    raise FileError(f"{path}: rows {done + 1} to {done + batch.num_rows} are {_TOO_LONG} rows.")
                for row in batch.to_pylist():
                    done += 1
                    yield Entry(f"{path}, row {done}", row, done, total)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise FileError(f"{path}: not a parquet file that can be read ({reason}); download it again.") from error


READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {  # by the ending of a file's name
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_values,
    ".parquet": parquet_rows,
}

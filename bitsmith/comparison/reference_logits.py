"""The original's predictions on the windows of one text, computed once and kept on disk; read window by window.

Each scored token is a row: 16-bit codes of its logits, logit = low + step * code, as llama.cpp's `_logits_` files have
them (`llama_logits`), but over the whole range of the row. What the 16 bits would blur is kept exactly: the loss of the
text's next token and the most probable token. A row's codes are off by half a step, 0.0003 for logits that span 40,
which changes a mean KLD by less than 1e-6.

The file: a head; for each window the arrays of `ReferenceRows` and their CRC-32. Its size follows from the head. The
key in the head names what it was made from, see `reference_key`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from bitsmith.errors import FileError
from bitsmith.evaluation.perplexity import row_chunks, token_losses
from bitsmith.system.sizes import human_bytes

VERSION = 1
_MAGIC = b"bslogits"
_HEAD = struct.Struct("<8sIIIIxxxxxxxx32s")  # magic, version, windows, rows of a window, vocabulary, key
_CHECK = struct.Struct("<II")  # CRC-32 of a window, its number
LEVELS = 65535
_LEAST_FREE = 64 << 20  # bytes of the disk that stay free


@dataclass(frozen=True)
class ReferenceRows:
    """The original's predictions of one window.

    losses: float64 [rows], nats, of the text's next token; exact
    low, step: float32 [rows]
    top: int32 [rows], the most probable token
    codes: uint16 [rows, vocab]
    """

    losses: np.ndarray
    low: np.ndarray
    step: np.ndarray
    top: np.ndarray
    codes: np.ndarray

    def logits(self) -> np.ndarray:
        """Decoded: float32 [rows, vocab]."""
        decoded = self.codes.astype(np.float32)
        decoded *= self.step[:, None]
        decoded += self.low[:, None]
        return decoded


def encode_rows(logits: np.ndarray, targets: np.ndarray) -> ReferenceRows:
    """logits float32 [rows, vocab], finite; targets int [rows], the text's next tokens."""
    low, high = logits.min(axis=1), logits.max(axis=1)
    step = ((high.astype(np.float64) - low) / LEVELS).astype(np.float32)
    codes = np.empty(logits.shape, np.uint16)
    inverse = np.divide(1.0, step, out=np.zeros_like(step), where=step > 0)
    for rows in row_chunks(logits):
        scaled = logits[rows] - low[rows, None]
        scaled *= inverse[rows, None]
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0, LEVELS, out=scaled)
        codes[rows] = scaled
    return ReferenceRows(token_losses(logits, targets), low, step, logits.argmax(axis=1).astype(np.int32), codes)


def reference_key(model_sha256: str, windows_sha256: str, kernel: str) -> str:
    """What the predictions depend on, as 64 hex digits: model, windows, how it is computed, this file's version."""
    return hashlib.sha256(f"{VERSION} {model_sha256} {windows_sha256} {kernel}".encode()).hexdigest()


def file_bytes(windows: int, rows: int, vocab: int) -> int:
    """Size of the file."""
    return _HEAD.size + windows * (_window_bytes(rows, vocab) + _CHECK.size)


def _window_bytes(rows: int, vocab: int) -> int:
    return rows * (8 + 4 + 4 + 4 + 2 * vocab)


class ReferenceLogits:
    """A file of predictions, open for reading. Raises FileError if it is not whole; see `check`."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise FileError(f"{path}: the original's predictions cannot be read ({error.strerror}).") from error
        head = self._file.read(_HEAD.size)
        try:
            magic, version, self.windows, self.rows, self.vocab, found = _HEAD.unpack(head)
        except struct.error as error:
            raise self._damaged("it has no head") from error
        if magic != _MAGIC or version != VERSION or found.hex() != key:
            raise self._damaged("its head is another file's")
        size, wanted = os.fstat(self._file.fileno()).st_size, file_bytes(self.windows, self.rows, self.vocab)
        if size != wanted:
            raise self._damaged(f"it has {size:,} bytes and should have {wanted:,}")

    def _damaged(self, what: str) -> FileError:
        self._file.close()
        return FileError(f"{self.path}: the original's predictions are damaged: {what}.")

    def check(self) -> None:
        """Read all windows and compare their checksums. Raises FileError."""
        for number in range(self.windows):
            data, check = self._read(number)
            if _CHECK.unpack(check) != (zlib.crc32(data), number):
                raise self._damaged(f"the checksum of window {number} is wrong")

    def window(self, number: int) -> ReferenceRows:
        """The predictions of one window."""
        data, rows, vocab = self._read(number)[0], self.rows, self.vocab
        parts, start = [], 0
        for kind, count in (("<f8", rows), ("<f4", rows), ("<f4", rows), ("<i4", rows), ("<u2", rows * vocab)):
            parts.append(np.frombuffer(data, kind, count, start))
            start += parts[-1].nbytes
        losses, low, step, top, codes = parts
        return ReferenceRows(losses, low, step, top, codes.reshape(rows, vocab))

    def __iter__(self) -> Iterator[ReferenceRows]:
        return (self.window(number) for number in range(self.windows))

    def _read(self, number: int) -> tuple[bytes, bytes]:
        size = _window_bytes(self.rows, self.vocab)
        self._file.seek(_HEAD.size + number * (size + _CHECK.size))
        return self._file.read(size), self._file.read(_CHECK.size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ReferenceWriter:
    """Writes predictions, window after window, into a temporary file that `finish` puts in place.

    Raises FileError where the disk has no room; nothing is left then.
    """

    def __init__(self, path: Path, key: str, *, windows: int, rows: int, vocab: int) -> None:
        self.path = path
        self._shape = windows, rows, vocab
        self._done = 0
        need = file_bytes(windows, rows, vocab)
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < need + _LEAST_FREE:
            raise FileError(self._full(need, free))
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
            dir=path.parent, prefix=f".{path.name}-", suffix=".part", delete=False
        )
        self._write(_HEAD.pack(_MAGIC, VERSION, windows, rows, vocab, bytes.fromhex(key)))

    def add(self, window: ReferenceRows) -> None:
        """The next window."""
        parts = (
            window.losses.astype("<f8"),
            window.low.astype("<f4"),
            window.step.astype("<f4"),
            window.top.astype("<i4"),
            np.ascontiguousarray(window.codes, "<u2"),
        )
        check = 0
        for part in parts:
            check = zlib.crc32(part.data, check)
            self._write(part.data)
        self._write(_CHECK.pack(check, self._done))
        self._done += 1

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.discard()
            free = shutil.disk_usage(self.path.parent).free
            raise FileError(f"{self._full(file_bytes(*self._shape), free)} ({error.strerror})") from error

    def _full(self, need: int, free: int) -> str:
        return (
            f"{self.path.parent}: the original's predictions take {human_bytes(need)}, and the disk has "
            f"{human_bytes(free)}; make room, set XDG_CACHE_HOME to another folder, or give a smaller --max-windows."
        )

    def finish(self) -> None:
        """Put the file in place in one step."""
        assert self._done == self._shape[0], self._done
        try:
            self._file.flush()
            self._file.close()
            os.replace(self._file.name, self.path)
        except OSError as error:
            self.discard()
            raise FileError(f"{self.path} cannot be written ({error.strerror}).") from error

    def discard(self) -> None:
        """Remove the temporary file."""
        with suppress(OSError):  # what could not be written stays unwritten
            self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()

"""llama.cpp's file of logits: what `llama-perplexity --kl-divergence-base` writes and `--kl-divergence` reads.

Layout (llama.cpp, tools/perplexity/perplexity.cpp, functions `perplexity`, `log_softmax` and `kl_divergence`), all
little-endian: "_logits_"; context, vocabulary and number of windows, int32 each; the tokens of all windows, int32; then
for each scored token of each window two float32, scale and lowest log-probability, and the codes, uint16 [vocab] filled
up to an even number. A log-probability is scale * code + lowest. Codes reach 16 nats below the row's largest logit;
what lies further below has code 0.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitsmith.comparison.reference_logits import LEVELS, ReferenceLogits, ReferenceRows
from bitsmith.containers.destination import Destination, followed
from bitsmith.containers.layout import FileLayout, Region
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.errors import FileError, UsageError
from bitsmith.evaluation.windows import Windows

_MAGIC = b"_logits_"
_HEAD = struct.Struct("<8siii")
_DEPTH = 16.0  # nats
_MOST_VOCAB, _MOST_CONTEXT = 1 << 24, 1 << 24


@dataclass(frozen=True)
class LlamaLogits:
    """An opened file of llama.cpp's. tokens: int64 [windows, context], as read, without start tokens"""

    path: Path
    tokens: np.ndarray
    vocab: int

    @property
    def rows(self) -> int:
        """Scored tokens of a window."""
        context = self.tokens.shape[1]
        return int(context - context // 2 - 1)

    def of(self, windows: Windows, name: str) -> Iterator[ReferenceRows]:
        """The predictions of these windows. Raises UsageError if the file was made of other tokens.

        The first token of a window may differ: llama.cpp puts the start token there, and does not write it.
        """
        count = len(windows)
        ours = windows.tokens
        theirs = self.tokens[:count]
        if theirs.shape != ours.shape or not np.array_equal(theirs[:, 1:], ours[:, 1:]):
            found = f"{len(self.tokens)} windows of {self.tokens.shape[1]} tokens"
            raise UsageError(
                f"{self.path}: made of other tokens than {name}, cut into {count} windows of {windows.context}: it has "
                f"{found}. Give the same text and --context, and no more --max-windows than it has."
            )
        return itertools.islice(self.windows(), count)

    def windows(self) -> Iterator[ReferenceRows]:
        """The predictions, window by window. The loss of a token that lies too far below is that of the lowest code."""
        first, width = self.tokens.shape[1] // 2, _width(self.vocab)
        with self.path.open("rb") as file:
            file.seek(_HEAD.size + 4 * self.tokens.size)
            for tokens in self.tokens:
                data = np.frombuffer(file.read(2 * self.rows * width), "<u2").reshape(self.rows, width)
                scale, low = data[:, :4].copy().view("<f4").T
                codes = data[:, 4 : 4 + self.vocab]
                targets = tokens[first + 1 :]
                losses = -(scale * codes[np.arange(self.rows), targets].astype(np.float64) + low)
                yield ReferenceRows(losses, low, scale, codes.argmax(axis=1).astype(np.int32), codes)


def _width(vocab: int) -> int:
    """16-bit words of a row."""
    return vocab + vocab % 2 + 4


def open_llama_logits(path: str | Path) -> LlamaLogits:
    """Raises FileError for a file that is not whole, or none of llama.cpp's."""
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size or not head.startswith(_MAGIC):
                raise FileError(f"{path}: not a file of logits as llama-perplexity writes it.")
            _, context, vocab, count = _HEAD.unpack(head)
            if not (8 <= context <= _MOST_CONTEXT and 0 < vocab <= _MOST_VOCAB and count > 0):
                raise FileError(f"{path}: its head is damaged: context {context}, vocabulary {vocab}, {count} windows.")
            wanted = _HEAD.size + count * (4 * context + 2 * (context - context // 2 - 1) * _width(vocab))
            size = path.stat().st_size
            if size != wanted:
                raise FileError(f"{path}: the file has {size:,} bytes and should have {wanted:,}; make it again.")
            tokens = np.frombuffer(file.read(4 * context * count), "<i4").reshape(count, context).astype(np.int64)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); check its name and permissions.") from error
    return LlamaLogits(path, tokens, vocab)


def write_llama_logits(path: str | Path, reference: ReferenceLogits, windows: Windows, *, force: bool = False) -> Path:
    """Write kept predictions as llama.cpp's file. Raises UsageError if it exists, FileError if it cannot be written."""
    place = followed(Path(path), force=force)
    head = _HEAD.pack(_MAGIC, windows.context, reference.vocab, len(windows))
    head += np.ascontiguousarray(windows.tokens, "<i4").tobytes()
    size = 2 * len(windows) * reference.rows * _width(reference.vocab)
    layout = FileLayout(place.name, head, (Region("logits", "data", len(head), size),), len(head) + size)
    destination = Destination(place, [layout], option="--write-logits")
    with (
        Reservation([destination], sources=[reference.path], force=force) as reservation,
        OutputFiles(destination, reservation) as output,
    ):
        for rows in reference:
            output.write("logits", "data", memoryview(encode_llama(rows.logits()).tobytes()))
        output.commit([layout])
    return place


def encode_llama(logits: np.ndarray) -> np.ndarray:
    """Rows as llama.cpp has them: float32 [rows, vocab] -> uint16 [rows, width]."""
    rows, vocab = logits.shape
    high = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), high - np.float32(_DEPTH))
    log_sum = np.log(np.exp((logits - high).astype(np.float64)).sum(axis=1, keepdims=True))
    scale = (high - low) / np.float32(LEVELS)
    found = np.zeros((rows, _width(vocab)), "<u2")
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale > 0, np.rint((np.maximum(logits, low) - low) / scale), 0)
    found[:, 4 : 4 + vocab] = codes
    found[:, :4] = np.concatenate([scale, low - high - log_sum], axis=1).astype("<f4").view("<u2")
    return found

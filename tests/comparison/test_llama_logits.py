"""llama.cpp's file of logits, read and written; its layout is written out here once more."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.comparison.llama_logits import encode_llama, open_llama_logits
from bitsmith.errors import FileError, UsageError


def test_a_row_holds_log_probabilities() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (3, 7)).astype(np.float32)
    logits[1, 3] = -90.0
    row = encode_llama(logits)
    assert row.shape == (3, 7 + 1 + 4)
    scale, low = row[:, :4].copy().view("<f4").T
    log_probabilities = scale[:, None] * row[:, 4:11] + low[:, None]
    wide = logits.astype(np.float64)
    true = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    near = np.abs(log_probabilities - true) < 2e-4
    assert near.sum() == 20
    assert row[1, 4 + 3] == 0
    assert log_probabilities[1, 3] == pytest.approx(true[1].max() - 16, abs=1e-3)


def test_what_is_written_is_read_and_gives_the_same_figures(tiny: Path, prose: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.bin"
    words = {"text": prose, "context": 32, "max_windows": 10, "noise_floor": False, "generate": 0, "layers": False}
    own = bitsmith.compare(tiny, to="q4_0", write_logits=file, **words)  # type: ignore[arg-type]
    magic, context, vocab, windows = struct.unpack("<8siii", file.read_bytes()[:20])
    assert (magic, context, vocab, windows) == (b"_logits_", 32, 4096, 10)
    read = open_llama_logits(file)
    assert read.rows == 15
    theirs = bitsmith.compare(tiny, to="q4_0", logits=file, **words)  # type: ignore[arg-type]
    first, second = own.rows[0].summary, theirs.rows[0].summary
    assert second.kld.value == pytest.approx(first.kld.value, rel=1e-4)
    assert second.perplexity == first.perplexity
    assert theirs.original.summary.perplexity.value == pytest.approx(own.original.summary.perplexity.value, rel=1e-4)
    with pytest.raises(UsageError, match="other tokens"):
        bitsmith.compare(tiny, to="q4_0", logits=file, **{**words, "context": 64})  # type: ignore[arg-type]


@pytest.mark.parametrize(("change", "message"), [(b"_logitz_", "not a file"), (b"", "should have")])
def test_damaged_files(tmp_path: Path, change: bytes, message: str) -> None:
    path = tmp_path / "base.bin"
    path.write_bytes((change or b"_logits_") + struct.pack("<iii", 32, 100, 2) + bytes(100))
    with pytest.raises(FileError, match=message):
        open_llama_logits(path)
    path.write_bytes(b"_logits_" + struct.pack("<iii", 32, -100, 2))
    with pytest.raises(FileError, match="head is damaged"):
        open_llama_logits(path)
    with pytest.raises(FileError, match="cannot be read"):
        open_llama_logits(tmp_path / "none")

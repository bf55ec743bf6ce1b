"""The original's predictions on disk: what 16 bits keep, and what is noticed of a damaged file."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bitsmith.comparison.measure import open_reference
from bitsmith.comparison.reference_logits import (
    ReferenceLogits,
    ReferenceWriter,
    encode_rows,
    file_bytes,
    reference_key,
)
from bitsmith.errors import FileError
from bitsmith.evaluation.perplexity import token_losses

KEY = reference_key("1" * 64, "2" * 64, "exact")
WINDOWS, ROWS, VOCAB = 3, 5, 301


def logits(window: int) -> np.ndarray:
    drawn = np.random.default_rng(window).normal(0, 4, (ROWS, VOCAB)).astype(np.float32)
    drawn[1] = 2.5  # a row without any difference
    return drawn


def targets(window: int) -> np.ndarray:
    return np.random.default_rng(100 + window).integers(0, VOCAB, ROWS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kept" / "original.logits"
    with ReferenceWriter(path, KEY, windows=WINDOWS, rows=ROWS, vocab=VOCAB) as writer:
        for window in range(WINDOWS):
            writer.add(encode_rows(logits(window), targets(window)))
        writer.finish()
    return path


def test_what_is_read_is_what_was_written(file: Path) -> None:
    assert file.stat().st_size == file_bytes(WINDOWS, ROWS, VOCAB)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with ReferenceLogits(file, KEY) as found:
        found.check()
        for number, window in enumerate(found):
            true = logits(number)
            assert np.all(np.abs(window.logits() - true) <= 0.52 * window.step[:, None])
            assert np.array_equal(window.top, true.argmax(axis=1))
            assert np.array_equal(window.losses, token_losses(true, targets(number)))
            assert np.array_equal(window.logits()[1], true[1])


@pytest.mark.parametrize("at", [3, 200, -1])
def test_a_changed_byte_is_noticed_and_the_file_goes(file: Path, at: int, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    assert open_reference(file, KEY) is None
    assert "damaged" in caplog.text
    assert not file.exists()


def test_a_cut_file_and_another_key_are_noticed(file: Path) -> None:
    with pytest.raises(FileError, match="another file's"):
        ReferenceLogits(file, reference_key("1" * 64, "3" * 64, "exact"))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FileError, match="should have"):
        ReferenceLogits(file, KEY)
    file.write_bytes(b"bs")
    with pytest.raises(FileError, match="no head"):
        ReferenceLogits(file, KEY)


def test_a_full_disk_is_said_beforehand_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FileError, match="the disk has 1 kB; make room"):
        ReferenceWriter(tmp_path / "x.logits", KEY, windows=WINDOWS, rows=ROWS, vocab=VOCAB)
    assert list(tmp_path.glob("*x*")) == []


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ReferenceWriter(tmp_path / "x.logits", KEY, windows=WINDOWS, rows=ROWS, vocab=VOCAB) as writer,
    ):
        writer.add(encode_rows(logits(0), targets(0)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []

"""The reader of SentencePiece models, on sound and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.sentencepiece import read_model
from tests.models.tokenizer.spm import BYTE, CONTROL, NORMAL, UNKNOWN, integer, message, model_proto, varint

PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<0x41>", 0.0, BYTE)]
PIECES += [("▁é🦙", -1.5, NORMAL), ("▁", -2.0, NORMAL)]


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(data)
    return path


def test_reads_what_was_written(tmp_path: Path) -> None:
    model = read_model(_write(tmp_path, model_proto(PIECES, add_dummy_prefix=False)))
    assert list(zip(model.pieces, model.scores, model.types, strict=True)) == PIECES
    assert model.add_dummy_prefix is False
    assert model.special == {"unk": 0, "bos": 1, "eos": 2}


def test_defaults_and_unknown_fields(tmp_path: Path) -> None:
    piece = message(1, b"a") + integer(99, 1 << 62) + varint(98 << 3 | 1) + struct.pack("<d", 2.0) + message(97, b"?")
    model = read_model(_write(tmp_path, message(1, piece) + message(2, integer(3, 2)) + message(50, b"\xff\xff")))
    assert (model.pieces, model.scores, model.types) == (("a",), (0.0,), (NORMAL,))
    assert model.add_dummy_prefix is True
    assert model.special == {"unk": 0}


@pytest.mark.parametrize(("kind", "name"), [(1, "unigram"), (3, "word"), (4, "char"), (9, "unknown")])
def test_other_algorithms(kind: int, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"of type {name}"):
        read_model(_write(tmp_path, model_proto(PIECES, model_type=kind)))


@pytest.mark.parametrize(
    ("data", "message_"),
    [
        (b"", "no pieces"),
        (b"\x0a", "ends within a number"),
        (b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 20, "a field of 4294967295 bytes where 20 are left"),
        (b"\x80" * 30, "more than ten bytes"),
        (b"\x00\x01", "field number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0d\x00", "unpack_from"),
        (message(1, message(1, b"\xff\xfe")), "utf-8"),
        (message(1, message(1, b"a") + integer(3, 77)), "has type 77"),
        (b'{"version": 1}', "something else"),
    ],
)
def test_damaged(data: bytes, message_: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=message_):
        read_model(_write(tmp_path, data))


def test_every_truncation_is_caught_or_reads_fewer_pieces(tmp_path: Path) -> None:
    whole = model_proto(PIECES)
    for size in range(len(whole)):
        try:
            model = read_model(_write(tmp_path, whole[:size]))
        except (FileError, UnsupportedError):
            continue
        assert model.pieces == tuple(text for text, _, _ in PIECES)  # only the last specification is missing


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="missing"):
        read_model(tmp_path / "tokenizer.model")

"""Reads SentencePiece models (`tokenizer.model`): protobuf's wire format, only the fields that are needed.

Source: sentencepiece_model.proto of google/sentencepiece (ModelProto), and protobuf's encoding specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitsmith.containers.hf_folder import read_file
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.vocabulary import TokenType

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces by id, with scores and types (the numbers of `TokenType`).

    add_dummy_prefix: True if a space is put before every text
    special: ids of "unk", "bos", "eos" and "pad"; a role without an id is missing
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    add_dummy_prefix: bool
    special: dict[str, int]


def read_model(path: Path) -> SentencePieceModel:
    """Parse a SentencePiece BPE model.

    Raises FileError if the file is no ModelProto, UnsupportedError if the model is not BPE.
    """
    data = read_file(path)
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                trainer = {n: v for n, v in _fields(value) if isinstance(v, int)}
            elif number == 3 and isinstance(value, bytes):
                normalizer = {n: v for n, v in _fields(value) if isinstance(v, int)}
    except (ValueError, struct.error) as error:
        raise FileError(f"{path}: expected a SentencePiece model (protobuf), found something else: {error}") from error
    if not pieces:
        raise FileError(f"{path}: expected a SentencePiece model, found no pieces in it")
    kind = _MODEL_TYPES.get(trainer.get(3, 1), "unknown")
    if kind != "bpe":
        raise UnsupportedError(
            f"{path}: a SentencePiece model of type {kind}; bitsmith reads only BPE models, since others need another "
            "algorithm"
        )
    ids = {"unk": trainer.get(40, 0), "bos": trainer.get(41, 1), "eos": trainer.get(42, 2), "pad": trainer.get(43, -1)}
    return SentencePieceModel(
        pieces=tuple(text for text, _, _ in pieces),
        scores=tuple(score for _, score, _ in pieces),
        types=tuple(kind for _, _, kind in pieces),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        special={role: token for role, token in ids.items() if 0 <= _signed(token) < len(pieces)},
    )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, int(TokenType.NORMAL)
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind not in tuple(TokenType):
        raise ValueError(f"piece {text!r} has type {kind}")
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Field numbers and values of one message. 32-bit fields are floats."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 before byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError(f"a field of {size} bytes where {len(data) - at} are left")
            yield number, data[at : at + size]
            at += size
        elif wire == _FIXED32:
            yield number, struct.unpack_from("<f", data, at)[0]
            at += 4
        elif wire == _FIXED64:
            yield number, struct.unpack_from("<d", data, at)[0]
            at += 8
        else:
            raise ValueError(f"wire type {wire} before byte {at}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number of more than ten bytes before byte {at}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value

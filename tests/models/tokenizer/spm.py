"""SentencePiece models written byte by byte, and the same as a tokenizer.json."""

from __future__ import annotations

import json
import struct
from collections import Counter

from tests.models.tokenizer.folders import sample

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
Piece = tuple[str, float, int]


def small_model(words: int = 600) -> list[Piece]:
    """Specials, bytes, the commonest pieces of up to eight characters that merges can reach, then characters."""
    text = sample().replace("\n", " ").replace(" ", "▁")
    pieces: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    characters = [c for c, n in Counter(text).most_common() if n > 2 and ord(c) < 0x20000]
    known = set(characters)
    merged: list[str] = []
    for length in range(2, 9):
        counts = Counter(text[i : i + length] for i in range(len(text) - length + 1))
        for piece, _ in counts.most_common(words // 7):
            if any(piece[:cut] in known and piece[cut:] in known for cut in range(1, length)):
                merged.append(piece)
                known.add(piece)
    pieces += [(piece, -float(rank), NORMAL) for rank, piece in enumerate(merged)]
    pieces += [(c, -float(len(merged) + rank), NORMAL) for rank, c in enumerate(characters)]
    return pieces


def varint(value: int) -> bytes:
    """Protobuf's base-128 integers."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])


def message(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def integer(number: int, value: int) -> bytes:
    """A varint field; negative values as protobuf's 64-bit two's complement."""
    return varint(number << 3) + varint(value & (1 << 64) - 1)


def model_proto(pieces: list[Piece], *, add_dummy_prefix: bool = True, model_type: int = 2) -> bytes:
    """A ModelProto with its trainer and normalizer specifications."""
    body = b""
    for text, score, kind in pieces:
        piece = message(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        body += message(1, piece + (integer(3, kind) if kind != NORMAL else b""))
    trainer = integer(3, model_type) + integer(40, 0) + integer(41, 1) + integer(42, 2) + integer(43, -1)
    normalizer = message(1, b"identity") + integer(3, int(add_dummy_prefix)) + integer(4, 0)
    return body + message(2, trainer) + message(3, normalizer)


def merged_json(pieces: list[Piece], *, prefix: bool = True) -> str:
    """The tokenizer.json that a conversion of the model gives: every pair that makes a piece, best score first."""
    ids = {text: token for token, (text, _, _) in enumerate(pieces)}
    merges = [
        [text[:cut], text[cut:]]
        for text, _, kind in sorted(pieces, key=lambda piece: -piece[1])
        if kind == NORMAL
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, escape] if prefix else [escape]
    added = [
        {"id": token, "content": pieces[token][0], "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for token in range(3)
    ]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": ids,
        "merges": merges,
    }
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoder = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": decoder},
            "model": model,
        }
    )

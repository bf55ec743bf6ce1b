"""Codecs of ggml's blocks with two to four levels: Q1_0, Q2_0, TQ1_0, TQ2_0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitsmith.containers.gguf.blocks_k import from_pairs, to_pairs
from bitsmith.containers.gguf.blocks_simple import BlockCodec, Fields, Pack, Structure, Unpack
from bitsmith.quant.formats.ggml import GGML_FORMATS

_IN_BYTE = np.array([0, 2, 4, 6], np.uint8)
_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)


def _pack_q1(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"d": params["d"], "qs": np.packbits(codes, axis=1, bitorder="little")}


def _unpack_q1(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    return np.unpackbits(blocks["qs"], axis=1, bitorder="little"), {"d": blocks["d"].copy()}


def _pack_q2(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    packed = np.bitwise_or.reduce(codes.reshape(-1, 16, 4) << _IN_BYTE, axis=2)
    return {"d": params["d"], "qs": packed}


def _unpack_q2(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    return ((blocks["qs"][:, :, None] >> _IN_BYTE) & 3).reshape(-1, 64), {"d": blocks["d"].copy()}


def _to_digits(codes: np.ndarray, digits: int) -> np.ndarray:
    """Codes below 3 [n, digits, k] -> bytes [n, k]: digits of base 3, as a fraction of 256, rounded up."""
    number = (codes * _POWERS[:digits, None]).sum(axis=1, dtype=np.uint16)
    return np.asarray((number * np.uint16(256) + np.uint16(242)) // 243, np.uint8)


def _from_digits(packed: np.ndarray, digits: int) -> np.ndarray:
    """The reverse of `_to_digits`: [n, k] -> [n, digits * k]. Each product with a power wraps at 256, as in ggml."""
    shifted = packed[:, None, :] * np.array([1, 3, 9, 27, 81], np.uint8)[:digits, None]
    codes = (shifted.astype(np.uint16) * 3) >> 8
    return codes.astype(np.uint8).reshape(len(packed), digits * packed.shape[1])


def _pack_tq1(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {
        "qs": np.concatenate(
            [
                _to_digits(codes[:, :160].reshape(-1, 5, 32), 5),
                _to_digits(codes[:, 160:240].reshape(-1, 5, 16), 5),
            ],
            axis=1,
        ),
        "qh": _to_digits(codes[:, 240:].reshape(-1, 4, 4), 4),
        "d": params["d"],
    }


def _unpack_tq1(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    qs = blocks["qs"]
    parts = [_from_digits(qs[:, :32], 5), _from_digits(qs[:, 32:], 5), _from_digits(blocks["qh"], 4)]
    return np.concatenate(parts, axis=1), {"d": blocks["d"].copy()}


def _pack_tq2(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"qs": to_pairs(codes), "d": params["d"]}


def _unpack_tq2(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    return from_pairs(blocks["qs"]), {"d": blocks["d"].copy()}


_D = ("d", "<f2", ())
_STRUCTURES: dict[str, tuple[Structure, Pack, Unpack]] = {
    "q1_0": ([_D, ("qs", "u1", (16,))], _pack_q1, _unpack_q1),
    "q2_0": ([_D, ("qs", "u1", (16,))], _pack_q2, _unpack_q2),
    "tq1_0": ([("qs", "u1", (48,)), ("qh", "u1", (4,)), _D], _pack_tq1, _unpack_tq1),
    "tq2_0": ([("qs", "u1", (64,)), _D], _pack_tq2, _unpack_tq2),
}

FEW_CODECS: dict[str, BlockCodec] = {
    name: BlockCodec(GGML_FORMATS[name], np.dtype(fields), pack, unpack)
    for name, (fields, pack, unpack) in _STRUCTURES.items()
}

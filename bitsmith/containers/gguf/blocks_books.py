"""Codecs of ggml's super-blocks with code books: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from bitsmith.containers.gguf.blocks_simple import BlockCodec, Fields, Pack, Structure, Unpack
from bitsmith.quant.formats.ggml import GGML_FORMATS

_BY_RUN = np.array([0, 7, 14, 21], np.uint32)  # the signs of four vectors in a word
_THREES = np.array([0, 3, 6, 9], np.uint16)


@lru_cache
def _parities() -> np.ndarray:
    """For each seven signs, all eight: the last makes their number even."""
    low = np.arange(128, dtype=np.uint32)
    odd = np.bitwise_count(low) & 1
    return np.asarray(low | (odd.astype(np.uint32) << 7))


def _runs(codes: np.ndarray) -> np.ndarray:
    return codes.reshape(-1, 8, 4)


def _sign_words(signs: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Signs [n, 32] and scales [n, 8] -> words [n, 8]: seven signs of four vectors, and the scale in the upper bits."""
    seven = np.bitwise_or.reduce((_runs(signs).astype(np.uint32) & 127) << _BY_RUN, axis=2)
    return np.asarray(seven | (scales.astype(np.uint32) << 28))


def _from_sign_words(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of `_sign_words`: all eight signs of each vector, and the scales."""
    seven = (words[:, :, None] >> _BY_RUN) & 127
    return _parities()[seven].reshape(-1, 32), (words >> 28).astype(np.uint8)


def _nibble_pairs(scales: np.ndarray) -> np.ndarray:
    return np.asarray(scales[:, 0::2] | (scales[:, 1::2] << 4))


def _from_nibble_pairs(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=2).reshape(packed.shape[0], 2 * packed.shape[1])


def _pack_iq2_xxs(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    words = np.empty((len(codes), 8, 2), np.uint32)
    words[:, :, 0] = np.bitwise_or.reduce((_runs(codes).astype(np.uint32) & 255) << (_BY_RUN // 7 * 8), axis=2)
    words[:, :, 1] = _sign_words(codes >> 8, params["scales"])
    return {"d": params["d"], "qs": words}


def _unpack_iq2_xxs(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    words = blocks["qs"]
    points = (words[:, :, 0, None] >> (_BY_RUN // 7 * 8)) & 255
    signs, scales = _from_sign_words(words[:, :, 1])
    return _joined(points.reshape(-1, 32), (signs, 8)), {"d": blocks["d"].copy(), "scales": scales}


def _pack_iq2_xs(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"d": params["d"], "qs": (codes & 0xFFFF).astype(np.uint16), "scales": _nibble_pairs(params["scales"])}


def _unpack_iq2_xs(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    qs = blocks["qs"]
    codes = _joined(qs & 511, (_parities()[qs >> 9], 9))
    return codes, {"d": blocks["d"].copy(), "scales": _from_nibble_pairs(blocks["scales"])}


def _pack_iq2_s(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    low = np.concatenate([codes & 255, (codes >> 10) & 255], axis=1).astype(np.uint8)
    high = np.bitwise_or.reduce(((_runs(codes) >> 8) & 3) << np.array([0, 2, 4, 6]), axis=2).astype(np.uint8)
    return {"d": params["d"], "qs": low, "qh": high, "scales": _nibble_pairs(params["scales"])}


def _unpack_iq2_s(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    high = (blocks["qh"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    codes = _joined(blocks["qs"][:, :32], (high.reshape(-1, 32), 8), (blocks["qs"][:, 32:], 10))
    return codes, {"d": blocks["d"].copy(), "scales": _from_nibble_pairs(blocks["scales"])}


def _pack_iq3_xxs(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    points = np.stack([codes & 255, (codes >> 8) & 255], axis=2).astype(np.uint8).reshape(-1, 64)
    return {"d": params["d"], "qs": points, "words": _sign_words(codes >> 16, params["scales"])}


def _unpack_iq3_xxs(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    signs, scales = _from_sign_words(blocks["words"])
    codes = _joined(blocks["qs"][:, 0::2], (blocks["qs"][:, 1::2], 8), (signs, 16))
    return codes, {"d": blocks["d"].copy(), "scales": scales}


def _pack_iq3_s(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    first, second = codes & 511, (codes >> 9) & 511
    points = np.stack([first, second], axis=2).reshape(-1, 64)
    return {
        "d": params["d"],
        "qs": (points & 255).astype(np.uint8),
        "qh": np.packbits((points >> 8).astype(np.uint8), axis=1, bitorder="little"),
        "signs": ((codes >> 18) & 255).astype(np.uint8),
        "scales": _nibble_pairs(params["scales"]),
    }


def _unpack_iq3_s(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    high = np.unpackbits(blocks["qh"], axis=1, bitorder="little").astype(np.int32)
    points = blocks["qs"] | (high << 8)
    codes = _joined(points[:, 0::2], (points[:, 1::2], 9), (blocks["signs"], 18))
    return codes, {"d": blocks["d"].copy(), "scales": _from_nibble_pairs(blocks["scales"])}


def _pack_iq1_s(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    high = np.bitwise_or.reduce((_runs(codes).astype(np.uint16) >> 8 & 7) << _THREES, axis=2)
    high |= (params["scales"].astype(np.uint16) << 12) | (params["shifts"].astype(np.uint16) << 15)
    return {"d": params["d"], "qs": (codes & 255).astype(np.uint8), "qh": high}


def _unpack_iq1_s(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    qh = blocks["qh"]
    high = ((qh[:, :, None] >> _THREES) & 7).reshape(-1, 32)
    params = {
        "d": blocks["d"].copy(),
        "scales": (qh >> 12 & 7).astype(np.uint8),
        "shifts": (qh >> 15).astype(np.uint8),
    }
    return _joined(blocks["qs"], (high, 8)), params


def _pack_iq1_m(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    four = ((codes >> 8) & 15).astype(np.uint8)  # three bits of a point, and the shift
    d = params["d"].view(np.uint16).reshape(-1, 1)
    scales = np.bitwise_or.reduce(params["scales"].astype(np.uint16).reshape(-1, 4, 4) << _THREES, axis=2)
    scales |= ((d >> np.array([0, 4, 8, 12], np.uint16)) & 15) << 12
    return {"qs": (codes & 255).astype(np.uint8), "qh": _nibble_pairs(four), "scales": scales}


def _unpack_iq1_m(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    words = blocks["scales"]
    d = np.bitwise_or.reduce((words >> 12) << np.array([0, 4, 8, 12], np.uint16), axis=1)
    scales = ((words[:, :, None] >> _THREES) & 7).astype(np.uint8).reshape(-1, 16)
    codes = _joined(blocks["qs"], (_from_nibble_pairs(blocks["qh"]), 8))
    return codes, {"d": np.ascontiguousarray(d).view(np.float16), "scales": scales}


def _joined(low: np.ndarray, *parts: tuple[np.ndarray, int]) -> np.ndarray:
    """Codes int32 [n, 32] from their parts, each shifted by a number of bits."""
    codes = low.astype(np.int32)
    for part, shift in parts:
        codes = codes | (part.astype(np.int32) << shift)
    return codes


_D = ("d", "<f2", ())
_STRUCTURES: dict[str, tuple[Structure, Pack, Unpack]] = {
    "iq1_s": ([_D, ("qs", "u1", (32,)), ("qh", "<u2", (8,))], _pack_iq1_s, _unpack_iq1_s),
    "iq1_m": ([("qs", "u1", (32,)), ("qh", "u1", (16,)), ("scales", "<u2", (4,))], _pack_iq1_m, _unpack_iq1_m),
    "iq2_xxs": ([_D, ("qs", "<u4", (8, 2))], _pack_iq2_xxs, _unpack_iq2_xxs),
    "iq2_xs": ([_D, ("qs", "<u2", (32,)), ("scales", "u1", (8,))], _pack_iq2_xs, _unpack_iq2_xs),
    "iq2_s": ([_D, ("qs", "u1", (64,)), ("qh", "u1", (8,)), ("scales", "u1", (8,))], _pack_iq2_s, _unpack_iq2_s),
    "iq3_xxs": ([_D, ("qs", "u1", (64,)), ("words", "<u4", (8,))], _pack_iq3_xxs, _unpack_iq3_xxs),
    "iq3_s": (
        [_D, ("qs", "u1", (64,)), ("qh", "u1", (8,)), ("signs", "u1", (32,)), ("scales", "u1", (4,))],
        _pack_iq3_s,
        _unpack_iq3_s,
    ),
}

BOOK_CODECS: dict[str, BlockCodec] = {
    name: BlockCodec(GGML_FORMATS[name], np.dtype(fields), pack, unpack)
    for name, (fields, pack, unpack) in _STRUCTURES.items()
}

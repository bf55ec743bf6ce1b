"""Codecs of ggml's super-blocks of 256 weights: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_XS."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitsmith.containers.gguf.blocks_simple import (
    BlockCodec,
    Fields,
    Pack,
    Structure,
    Unpack,
    from_nibbles,
    to_nibbles,
)
from bitsmith.quant.formats.ggml import GGML_FORMATS


def to_pairs(codes: np.ndarray) -> np.ndarray:
    """Codes < 4 [n, 256] -> bytes [n, 64]: in each 128 codes, run k of 32 takes bits 2k and 2k + 1."""
    runs = codes.reshape(-1, 2, 4, 32)
    packed: np.ndarray = runs[:, :, 0] | (runs[:, :, 1] << 2) | (runs[:, :, 2] << 4) | (runs[:, :, 3] << 6)
    return packed.reshape(-1, 64)


def from_pairs(packed: np.ndarray) -> np.ndarray:
    """The reverse of `to_pairs`."""
    runs = packed.reshape(-1, 2, 1, 32)
    return np.concatenate([(runs >> shift) & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 256)


def _to_bit_rows(bits: np.ndarray) -> np.ndarray:
    """Bits [n, 256] -> bytes [n, 32]: bit k of byte j belongs to weight 32 k + j."""
    return np.packbits(bits.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)


def _from_bit_rows(packed: np.ndarray) -> np.ndarray:
    """The reverse of `_to_bit_rows`."""
    return np.unpackbits(packed.reshape(-1, 1, 32), axis=1, bitorder="little").reshape(-1, 256)


def _to_six_bits(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Eight scales and eight mins < 64, [n, 8] each -> bytes [n, 12] of Q4_K and Q5_K.

    Bytes 0..3 hold scales 0..3, and in their upper two bits those of scales 4..7. Bytes 4..7 hold mins in the same
    way. Bytes 8..11 hold the lower four bits of scales and mins 4..7.
    """
    return np.concatenate(
        [
            scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
            mins[:, :4] | ((mins[:, 4:] >> 4) << 6),
            (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4),
        ],
        axis=1,
    )


def _from_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of `_to_six_bits`."""
    first, second, lower = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (lower & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (lower >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, mins


def _pack_q2(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    scales = params["scales"] | (params["mins"] << 4)
    return {"d": params["d"], "dmin": params["dmin"], "scales": scales, "qs": to_pairs(codes)}


def _unpack_q2(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    scales = blocks["scales"]
    params = {"d": blocks["d"].copy(), "dmin": blocks["dmin"].copy(), "scales": scales & 15, "mins": scales >> 4}
    return from_pairs(blocks["qs"]), params


def _pack_q3(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    scales = (params["scales"] + np.int8(32)).astype(np.uint8)
    upper = (scales >> 4).reshape(-1, 4, 4)
    packed = np.concatenate(
        [
            (scales[:, :8] & 15) | ((scales[:, 8:] & 15) << 4),
            upper[:, 0] | (upper[:, 1] << 2) | (upper[:, 2] << 4) | (upper[:, 3] << 6),
        ],
        axis=1,
    )
    return {"d": params["d"], "scales": packed, "qs": to_pairs(codes & 3), "hmask": _to_bit_rows(codes >> 2)}


def _unpack_q3(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    packed = blocks["scales"]
    lower = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    upper = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (lower | (upper << 4)).astype(np.int8) - np.int8(32)
    codes = from_pairs(blocks["qs"]) | (_from_bit_rows(blocks["hmask"]) << 2)
    return codes, {"d": blocks["d"].copy(), "scales": scales}


def _pack_q4(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    scales = _to_six_bits(params["scales"], params["mins"])
    return {"d": params["d"], "dmin": params["dmin"], "scales": scales, "qs": to_nibbles(codes, 32)}


def _unpack_q4(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    scales, mins = _from_six_bits(blocks["scales"])
    params = {"d": blocks["d"].copy(), "dmin": blocks["dmin"].copy(), "scales": scales, "mins": mins}
    return from_nibbles(blocks["qs"], 32), params


def _pack_q5(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {**_pack_q4(codes & 15, params), "qh": _to_bit_rows(codes >> 4)}


def _unpack_q5(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    codes, params = _unpack_q4(blocks)
    return codes | (_from_bit_rows(blocks["qh"]) << 4), params


def _pack_q6(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    # of each 128 codes, the lower nibbles of the first and the second 64 share 64 bytes
    return {"d": params["d"], "scales": params["scales"], "ql": to_nibbles(codes & 15, 64), "qh": to_pairs(codes >> 4)}


def _unpack_q6(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    codes = from_nibbles(blocks["ql"], 64) | (from_pairs(blocks["qh"]) << 4)
    return codes, {"d": blocks["d"].copy(), "scales": blocks["scales"].copy()}


def _pack_iq4(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    scales = (params["scales"] + np.int8(32)).astype(np.uint8)
    upper = (scales >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    return {
        "d": params["d"],
        "scales_h": np.bitwise_or.reduce(upper, axis=1),
        "scales_l": to_nibbles(scales & 15, 1),
        "qs": to_nibbles(codes, 16),
    }


def _unpack_iq4(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    upper = (blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = from_nibbles(blocks["scales_l"], 1) | (upper << 4).astype(np.uint8)
    params = {"d": blocks["d"].copy(), "scales": scales.astype(np.int8) - np.int8(32)}
    return from_nibbles(blocks["qs"], 16), params


_D, _DMIN = ("d", "<f2", ()), ("dmin", "<f2", ())
_STRUCTURES: dict[str, tuple[Structure, Pack, Unpack]] = {
    "q2_k": ([("scales", "u1", (16,)), ("qs", "u1", (64,)), _D, _DMIN], _pack_q2, _unpack_q2),
    "q3_k": ([("hmask", "u1", (32,)), ("qs", "u1", (64,)), ("scales", "u1", (12,)), _D], _pack_q3, _unpack_q3),
    "q4_k": ([_D, _DMIN, ("scales", "u1", (12,)), ("qs", "u1", (128,))], _pack_q4, _unpack_q4),
    "q5_k": (
        [_D, _DMIN, ("scales", "u1", (12,)), ("qh", "u1", (32,)), ("qs", "u1", (128,))],
        _pack_q5,
        _unpack_q5,
    ),
    "q6_k": ([("ql", "u1", (128,)), ("qh", "u1", (64,)), ("scales", "i1", (16,)), _D], _pack_q6, _unpack_q6),
    "iq4_xs": (
        [_D, ("scales_h", "<u2", ()), ("scales_l", "u1", (4,)), ("qs", "u1", (128,))],
        _pack_iq4,
        _unpack_iq4,
    ),
}

K_CODECS: dict[str, BlockCodec] = {
    name: BlockCodec(GGML_FORMATS[name], np.dtype(fields), pack, unpack)
    for name, (fields, pack, unpack) in _STRUCTURES.items()
}

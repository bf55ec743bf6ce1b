"""Codecs of ggml's one-level blocks: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4, NVFP4; and the codec class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.gguf.types import TYPES
from bitsmith.quant.formats.base import Format, VectorFormat
from bitsmith.quant.formats.ggml import GGML_FORMATS
from bitsmith.quant.tensor import QuantTensor
from bitsmith.quant.vector_grid import VECTOR

Fields = dict[str, np.ndarray]  # by name; the first dimension counts blocks
Pack = Callable[[np.ndarray, Mapping[str, np.ndarray]], Fields]
Unpack = Callable[[np.ndarray], tuple[np.ndarray, Fields]]


@dataclass(frozen=True)
class BlockCodec:
    """Rows of ggml blocks, see `Codec`. One part, "data": uint8 [rows, bytes per row].

    block: numpy structure of one block in the file, field by field, little-endian
    pack: codes [n, codes of a block] and parameters [n, per block] -> the fields
    unpack: the reverse
    """

    format: Format
    block: np.dtype[np.void]
    pack: Pack
    unpack: Unpack

    @property
    def name(self) -> str:
        """The name of the ggml type."""
        return self.format.name

    @property
    def vector(self) -> int:
        """Weights of a code."""
        return VECTOR if isinstance(self.format, VectorFormat) else 1

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """See `Codec.layout`. Raises UnsupportedError if a row is not a whole number of blocks."""
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        return {"data": ((rows, TYPES[self.name].row_bytes(shape[-1])), np.dtype(np.uint8))}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """See `Codec.encode`."""
        codes = np.asarray(tensor.codes)
        rows, cols = codes.shape[0], codes.shape[1] * self.vector
        kind = TYPES[self.name]
        blocks = rows * (cols // kind.block)
        out = np.zeros(blocks, self.block)
        if blocks:
            params = {name: np.asarray(values).reshape(blocks, -1) for name, values in tensor.params.items()}
            for name, values in self.pack(codes.reshape(blocks, -1), params).items():
                out[name] = values.reshape(out[name].shape)
        return {"data": out.view(np.uint8).reshape(rows, kind.row_bytes(cols))}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """See `Codec.decode`."""
        data = np.ascontiguousarray(parts["data"])
        rows = data.shape[0]
        codes, params = self.unpack(data.reshape(-1).view(self.block))
        return QuantTensor(
            self.format,
            codes.reshape(rows, cols // self.vector),
            {name: values.reshape(rows, values.size // max(rows, 1)) for name, values in params.items()},
        )


def to_nibbles(codes: np.ndarray, half: int) -> np.ndarray:
    """Codes < 16 [n, k * 2 * half] -> bytes [n, k * half]: first half of each run in the low nibbles."""
    rows, cols = codes.shape
    runs = codes.reshape(rows, cols // (2 * half), 2, half)
    packed: np.ndarray = runs[:, :, 0] | (runs[:, :, 1] << 4)
    return packed.reshape(rows, cols // 2)


def from_nibbles(packed: np.ndarray, half: int) -> np.ndarray:
    """The reverse of `to_nibbles`."""
    rows, count = packed.shape
    runs = packed.reshape(rows, count // half, 1, half)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(rows, 2 * count)


def _pack_nibbles(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"qs": to_nibbles(codes, 16), **params}


def _unpack_nibbles(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    names = [name for name in blocks.dtype.names or () if name != "qs"]
    return from_nibbles(blocks["qs"], 16), {name: blocks[name].copy() for name in names}


def _pack_fives(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    return {"qs": to_nibbles(codes & 15, 16), "qh": high, **params}


def _unpack_fives(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    high = np.unpackbits(blocks["qh"], axis=1, bitorder="little")
    names = [name for name in blocks.dtype.names or () if name not in ("qs", "qh")]
    return from_nibbles(blocks["qs"], 16) | (high << 4), {name: blocks[name].copy() for name in names}


def _pack_bytes(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"qs": (codes ^ 128).view(np.int8), **params}  # q8_0 stores code - 128


def _unpack_bytes(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    return np.ascontiguousarray(blocks["qs"]).view(np.uint8) ^ 128, {"d": blocks["d"].copy()}


# our codes of MXFP4 and NVFP4 go from -6 up to 6; files store sign and magnitude: 0..7 are >= 0, 8..15 are <= 0
_TO_SIGN = np.array([15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)
_FROM_SIGN = np.argsort(_TO_SIGN).astype(np.uint8)


def _pack_mxfp4(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"qs": to_nibbles(_TO_SIGN[codes], 16), **params}


def _unpack_mxfp4(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    return _FROM_SIGN[from_nibbles(blocks["qs"], 16)], {"e": blocks["e"].copy()}


def _pack_nvfp4(codes: np.ndarray, params: Mapping[str, np.ndarray]) -> Fields:
    return {"qs": to_nibbles(_TO_SIGN[codes], 8), **params}


def _unpack_nvfp4(blocks: np.ndarray) -> tuple[np.ndarray, Fields]:
    return _FROM_SIGN[from_nibbles(blocks["qs"], 8)], {"scales": blocks["scales"].copy()}


Structure = list[tuple[str, str, tuple[int, ...]]]  # fields of a block in file order: name, numpy type, shape

_D, _M = ("d", "<f2", ()), ("m", "<f2", ())
_NIBBLES, _HIGH = ("qs", "u1", (16,)), ("qh", "u1", (4,))
_STRUCTURES: dict[str, tuple[Structure, Pack, Unpack]] = {
    "q8_0": ([_D, ("qs", "i1", (32,))], _pack_bytes, _unpack_bytes),
    "q4_0": ([_D, _NIBBLES], _pack_nibbles, _unpack_nibbles),
    "q4_1": ([_D, _M, _NIBBLES], _pack_nibbles, _unpack_nibbles),
    "q5_0": ([_D, _HIGH, _NIBBLES], _pack_fives, _unpack_fives),
    "q5_1": ([_D, _M, _HIGH, _NIBBLES], _pack_fives, _unpack_fives),
    "iq4_nl": ([_D, _NIBBLES], _pack_nibbles, _unpack_nibbles),
    "mxfp4": ([("e", "u1", ()), _NIBBLES], _pack_mxfp4, _unpack_mxfp4),
    "nvfp4": ([("scales", "u1", (4,)), ("qs", "u1", (32,))], _pack_nvfp4, _unpack_nvfp4),
}

SIMPLE_CODECS: dict[str, BlockCodec] = {
    name: BlockCodec(GGML_FORMATS[name], np.dtype(fields), pack, unpack)
    for name, (fields, pack, unpack) in _STRUCTURES.items()
}

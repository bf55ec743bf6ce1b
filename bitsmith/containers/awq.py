"""One tensor in AutoAWQ's GEMM layout (AutoAWQ, `WQLinear_GEMM`; Lin et al. 2023).

A weight [out, in] of 4-bit codes in groups along its rows becomes:

- qweight int32 [in, out / 8]: eight outputs a word; nibble i, from the lowest, holds output 0 2 4 6 1 3 5 7 [i]
- qzeros int32 [groups, out / 8]: zero points, packed alike
- scales float16 [groups, out]

value = scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.integers import WORD, checked_scale, layout_name, pack_words, unpack_words
from bitsmith.errors import UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.tensor import QuantTensor

_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_BACK = np.argsort(_ORDER)


@dataclass(frozen=True)
class AwqCodec:
    """Codes and parameters of asymmetric 4-bit integers <-> AWQ's parts."""

    format: Affine

    @property
    def name(self) -> str:
        """The layout's name: "awq/int4-g128"; AWQ is always asymmetric, so that it does not say."""
        symmetric = Affine(self.format.bits, self.format.group, False, self.format.precision)
        return layout_name("awq", symmetric, "f16")

    @property
    def row_multiple(self) -> int:
        """Outputs in a word."""
        return 8

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Outputs lie along the second axis of every part."""
        return {"qweight": RowAxis(1, 8, 1), "qzeros": RowAxis(1, 8, 1), "scales": RowAxis(1)}

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        if len(shape) != 2 or shape[0] % 8 or not shape[0]:
            raise UnsupportedError(
                f"AWQ's layout holds matrices whose rows divide by 8, not {list(shape)}; leave the tensor in f16"
            )
        rows, cols = shape
        (_, groups), scale_dtype = self.format.params_layout(rows, cols)["scale"]
        return {
            "qweight": ((cols, rows // 8), WORD),
            "qzeros": ((groups, rows // 8), WORD),
            "scales": ((groups, rows), scale_dtype),
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows; outputs are padded to whole words."""
        return {
            "qweight": _pack(as_numpy(tensor.codes).T),
            "qzeros": _pack(as_numpy(tensor.params["zero"]).T),
            "scales": checked_scale(as_numpy(tensor.params["scale"]).T, self.format.scale_dtype),
        }

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows."""
        scale = np.ascontiguousarray(parts["scales"].T)
        zero = np.ascontiguousarray(_unpack(parts["qzeros"], len(scale)).T)
        codes = np.ascontiguousarray(_unpack(parts["qweight"], len(scale)).T)
        return QuantTensor(self.format, codes, {"scale": scale, "zero": zero})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        rows = parts["scales"].shape[1]
        packed = {name: _pack(_unpack(parts[name], rows)[:, start:stop]) for name in ("qweight", "qzeros")}
        return {**packed, "scales": cut(parts["scales"], 1, start, stop)}


def awq_codec(format: Format) -> AwqCodec | None:
    """The codec of asymmetric 4-bit integers with float16 scales; None for other formats."""
    held = isinstance(format, Affine) and (format.bits, format.asymmetric, format.precision) == (4, True, "f16")
    return AwqCodec(format) if held and isinstance(format, Affine) else None


def _pack(codes: np.ndarray) -> np.ndarray:
    """uint8 [n, outputs] -> int32 [n, outputs / 8], rounded up."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    eights = padded.reshape(len(padded), padded.shape[1] // 8, 8)[:, :, _ORDER]
    return pack_words(np.ascontiguousarray(eights).reshape(padded.shape), 4)


def _unpack(words: np.ndarray, count: int) -> np.ndarray:
    """The inverse: int32 [n, words] -> uint8 [n, count]."""
    n, width = words.shape
    eights = unpack_words(words, 4, 8 * width).reshape(n, width, 8)[:, :, _BACK]
    return eights.reshape(n, 8 * width)[:, :count]

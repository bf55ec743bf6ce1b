"""Four-bit floats in the layouts of compressed-tensors: nvfp4-pack-quantized and mxfp4-pack-quantized.

- weight_packed uint8 [out, in / 2]: two E2M1 values a byte, the first in the low nibble
- weight_scale: float8_e4m3fn [out, in / 16] in NVFP4; uint8 [out, in / 32], E8M0, in MXFP4
- weight_global_scale float32 [1], in NVFP4 only: scales are divided by it; 448 * 6 / absmax of the tensor

ModelOpt stores the inverse of the last, as weight_scale_2 (`bitsmith.containers.modelopt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.nibbles import pack_e2m1, unpack_e2m1
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.formats.byte_scaled import NVFP4_TENSOR, ByteScaled
from bitsmith.quant.formats.microscale import MXFP4, MicroScaled
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.number_types import number_type

_E4M3 = "float8_e4m3fn"
_UINT8 = np.dtype(np.uint8)
_NAN = 0x7F  # of E4M3, and everything above it, which is negative
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Nvfp4Codec:
    """NVFP4 with a scale of the tensor.

    container: the prefix of the layout's name
    weight, wide: names of the packed part and of the tensor's scale
    inverse: whether the tensor's scale is stored as a factor, not as a divisor
    wide_shape: shape of the tensor's scale
    """

    container: str = "compressed"
    weight: str = "weight_packed"
    wide: str = "weight_global_scale"
    inverse: bool = False
    wide_shape: tuple[int, ...] = (1,)

    @property
    def name(self) -> str:
        """The layout's name: "compressed/nvfp4"."""
        return f"{self.container}/nvfp4" + ("" if self.wide_shape == Nvfp4Codec.wide_shape or self.inverse else "-0d")

    @property
    def format(self) -> ByteScaled:
        """See `Codec`."""
        return NVFP4_TENSOR

    @property
    def row_multiple(self) -> int:
        """Rows are independent."""
        return 1

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis; the tensor's scale has none."""
        return {self.weight: RowAxis(0), "weight_scale": RowAxis(0), self.wide: None}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape, NVFP4_TENSOR.block)
        return {
            self.weight: ((rows, cols // 2), _UINT8),
            "weight_scale": ((rows, cols // NVFP4_TENSOR.block), number_type(_E4M3)),
            self.wide: (self.wide_shape, np.dtype("<f4")),
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        divisor = np.asarray(as_numpy(tensor.params["divisor"]), np.float32)[0, 0]
        wide = np.float32(1.0) / divisor if self.inverse else divisor
        return {
            self.weight: pack_e2m1(as_numpy(tensor.codes)),
            "weight_scale": np.ascontiguousarray(as_numpy(tensor.params["scale"])).view(number_type(_E4M3)),
            self.wide: np.full(self.wide_shape, wide, np.float32),
        }

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for scales without a value."""
        scale = np.ascontiguousarray(parts["weight_scale"]).view(np.uint8)
        if scale.size and int(scale.max()) >= _NAN:
            raise TensorError("a scale is negative or NaN; the file is damaged: make it again")
        wide = np.float32(parts[self.wide].reshape(()))
        if not (np.isfinite(wide) and wide > 0):
            raise TensorError(f"{self.wide} is {wide}; expected a number above zero: make the file again")
        divisor = np.float32(1.0) / wide if self.inverse else wide
        codes = unpack_e2m1(parts[self.weight])
        params = {"scale": scale, "divisor": np.full((len(codes), 1), divisor, np.float32)}
        return QuantTensor(NVFP4_TENSOR, codes, params)

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return {
            name: parts[name] if axis is None else cut(parts[name], axis.axis, start, stop)
            for name, axis in self.axes.items()
        }


@dataclass(frozen=True)
class Mxfp4Codec:
    """MXFP4: the scales are powers of two, and there is no scale of the tensor."""

    name: str = "compressed/mxfp4"

    @property
    def format(self) -> MicroScaled:
        """See `Codec`."""
        return MXFP4

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape, MXFP4.block)
        return {"weight_packed": ((rows, cols // 2), _UINT8), "weight_scale": ((rows, cols // MXFP4.block), _UINT8)}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        scale = np.ascontiguousarray(as_numpy(tensor.params["e"]))
        return {"weight_packed": pack_e2m1(as_numpy(tensor.codes)), "weight_scale": scale}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for a scale without a value."""
        scale = np.ascontiguousarray(parts["weight_scale"])
        if scale.size and int(scale.max()) > MXFP4.top:
            raise TensorError("a scale is the byte 255, NaN in E8M0; the file is damaged: make it again")
        return QuantTensor(MXFP4, unpack_e2m1(parts["weight_packed"]), {"e": scale})


def _matrix(shape: tuple[int, ...], block: int) -> tuple[int, int]:
    if len(shape) != 2 or not shape[0] or shape[1] % block:
        raise UnsupportedError(f"4-bit floats need a matrix with rows that divide by {block}, not {list(shape)}")
    return shape[0], shape[1]

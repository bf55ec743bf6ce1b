"""One tensor in the layouts of ModelOpt's unified checkpoints (nvidia-modelopt, torch/export/quant_utils.py).

- FP8: weight float8_e4m3fn [out, in], weight_scale float32 []
- W4A16_AWQ, W4A8_AWQ: weight uint8 [out / 2, in], integers of two's complement, row 2 i in the low nibble; weight_scale
  float32 [out, in / group]; pre_quant_scale [in], by which inputs are multiplied: ones, since factors are folded into
  what makes the input; W4A8_AWQ also weight_scale_2 float32 [], absmax / 448
- NVFP4, W4A16_NVFP4: weight uint8 [out, in / 2], weight_scale float8_e4m3fn [out, in / 16], weight_scale_2 float32 [],
  the inverse of compressed-tensors' weight_global_scale
- where inputs are rounded, input_scale float32 []: absmax / 448, of NVFP4 absmax / (448 * 6)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.compressed_codecs import FloatCodec
from bitsmith.containers.compressed_floats import Nvfp4Codec
from bitsmith.containers.static_input import StaticInput
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.precision import PRECISIONS, as_numpy
from bitsmith.quant.input_rounding import InputRounding
from bitsmith.quant.tensor import QuantTensor

_F32 = np.dtype("<f4")
_LARGEST = np.float32(448.0)  # of E4M3
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class Fp8Codec(FloatCodec):
    """FP8 with one scale for the tensor, of no dimensions."""

    @property
    def name(self) -> str:
        """The layout's name."""
        return "modelopt/fp8"


NVFP4_CODEC = Nvfp4Codec("modelopt", "weight", "weight_scale_2", inverse=True, wide_shape=())


@dataclass(frozen=True)
class NvfpInput(StaticInput):
    """The parts of NVFP4 weights, and the scale of inputs that NVIDIA's kernels round to NVFP4.

    bitsmith stores the scale, and computes with inputs that are not rounded.
    """

    @property
    def rounding(self) -> None:
        """Nothing is rounded here."""
        return

    def with_input_absmax(self, largest: float) -> NvfpInput:
        """See `StaticInput`; the scale is absmax / (448 * 6)."""
        return replace(self, input_rounding=super().with_input_absmax(largest / 6.0).input_rounding)

    def read(self, parts: Mapping[str, np.ndarray]) -> InputRounding | None:
        """Nothing is rounded here. Raises TensorError if the scale is not finite and above zero."""
        super().read(parts)
        return None


@dataclass(frozen=True)
class Int4Codec:
    """Integers of 4 bits in groups, two rows in a byte.

    second: whether there is a weight_scale_2 (W4A8_AWQ)
    precision: of pre_quant_scale; "" where there is none
    """

    format: Affine
    second: bool
    precision: str

    @property
    def name(self) -> str:
        """The layout's name: "modelopt/int4-g128", "modelopt/w4a8-g128"."""
        bare = "" if self.precision else "-bare"
        return f"modelopt/{'w4a8' if self.second else 'int4'}-g{self.format.group}{bare}"

    @property
    def row_multiple(self) -> int:
        """Number of rows in a byte."""
        return 2

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis, two in an entry of the weight."""
        axes: dict[str, RowAxis | None] = {"weight": RowAxis(0, 2, 1), "weight_scale": RowAxis(0)}
        axes |= {"pre_quant_scale": None} if self.precision else {}
        return axes | ({"weight_scale_2": None} if self.second else {})

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        if len(shape) != 2 or not shape[0] or shape[0] % 2:
            raise UnsupportedError(
                f"ModelOpt's 4-bit integers need a matrix with an even number of rows, not {list(shape)}; keep it"
            )
        rows, cols = shape
        parts: Layout = {
            "weight": ((rows // 2, cols), np.dtype(np.uint8)),
            "weight_scale": self.format.params_layout(rows, cols)["scale"],
        }
        parts |= {"pre_quant_scale": ((cols,), PRECISIONS[self.precision])} if self.precision else {}
        return parts | ({"weight_scale_2": ((), _F32)} if self.second else {})

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows; an odd number of them is padded to whole bytes."""
        nibbles = as_numpy(tensor.codes) ^ 8  # code - 8, as two's complement of 4 bits
        parts = {
            "weight": _pairs(nibbles),
            "weight_scale": np.ascontiguousarray(as_numpy(tensor.params["scale"]), np.float32),
        }
        if self.precision:
            parts["pre_quant_scale"] = np.ones(nibbles.shape[1], PRECISIONS[self.precision])
        if self.second:
            largest = np.abs(np.asarray(tensor.values())).max(initial=0)
            parts["weight_scale_2"] = np.array(max(np.float32(largest), np.finfo(np.float32).tiny) / _LARGEST, _F32)
        return parts

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for factors of inputs other than 1."""
        factors = parts.get("pre_quant_scale")
        if factors is not None and (factors.astype(np.float32) != 1).any():
            raise TensorError("its pre_quant_scale is not 1, which bitsmith does not read; name the original model")
        packed = parts["weight"]
        codes = np.empty((2 * len(packed), packed.shape[1]), np.uint8)
        codes[::2], codes[1::2] = (packed & 15) ^ 8, (packed >> 4) ^ 8
        scale = parts["weight_scale"]
        return QuantTensor(self.format, codes[: len(scale)], {"scale": scale})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`; the second scale is that of the whole tensor."""
        joined = join_slabs(self, slabs)
        if self.second:
            joined["weight_scale_2"] = np.array(max(float(slab["weight_scale_2"]) for slab in slabs), _F32)
        return joined

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`; an odd number of rows is padded to whole bytes by the caller's `row_multiple`."""
        whole = self.decode(parts, parts["weight"].shape[1])
        if start % 2 == 0 and stop % 2 == 0:
            cuts = {"weight": cut(parts["weight"], 0, start // 2, stop // 2)}
        else:
            cuts = {"weight": _pairs(np.asarray(whole.codes)[start:stop] ^ 8)}
        cuts["weight_scale"] = cut(parts["weight_scale"], 0, start, stop)
        return {name: cuts.get(name, parts[name]) for name in parts}


def _pairs(nibbles: np.ndarray) -> np.ndarray:
    """Nibbles uint8 [rows, cols] -> uint8 [ceil(rows / 2), cols]; a missing last row is zeros."""
    whole = np.pad(nibbles, ((0, len(nibbles) % 2), (0, 0)))
    return np.ascontiguousarray(whole[::2] | whole[1::2] << 4)

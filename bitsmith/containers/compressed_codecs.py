"""One tensor in the layouts of compressed-tensors (github.com/vllm-project/compressed-tensors).

- pack-quantized: weight_packed int32 [out, in * b / 32], codes along the rows, the first in the lowest bits;
  weight_scale [out, groups]; weight_shape int64 [2]; with zero points weight_zero_point int32 [out * b / 32, groups],
  packed along the outputs; weight_g_idx int32 [in] if columns were quantized in activation order
- int-quantized: weight int8 [out, in], weight_scale [out, groups], weight_zero_point int8
- float-quantized: weight float8_e4m3fn [out, in], weight_scale [out, 1], or [1] for the whole tensor

Their integers are signed. Packed integers are stored with 2^(b-1) added, which makes them our codes. Scales have the
model's own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bitsmith.containers.base import RowAxis, cut, join_slabs
from bitsmith.containers.integers import WORD, checked_scale, layout_name, pack_words, unpack_words, word_count
from bitsmith.containers.patterns import from_patterns, to_patterns
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.formats.tensorwide import TensorWide
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.number_types import number_type

_E4M3 = "float8_e4m3fn"
_SHAPE = np.dtype("<i8")
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class PackedCodec:
    """pack-quantized. indexed: whether there is a weight_g_idx; such files are read, not written."""

    format: Affine
    indexed: bool = False

    @property
    def name(self) -> str:
        """The layout's name: "compressed/pack-int4-g128", plus for instance "-f16" if scales are not bfloat16."""
        name = layout_name("", self.format, "bf16", "g_idx" if self.indexed else "")
        return f"compressed/pack-{name.removeprefix('/')}"

    @property
    def row_multiple(self) -> int:
        """Number of rows whose zero points fill whole words, for all bit widths."""
        return 32

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis of every part."""
        zero: dict[str, RowAxis | None] = {"weight_zero_point": RowAxis(0, 32, self.format.bits)}
        index: dict[str, RowAxis | None] = {"weight_g_idx": None}
        return {
            "weight_packed": RowAxis(0),
            "weight_scale": RowAxis(0),
            "weight_shape": None,
            **(zero if self.format.asymmetric else {}),
            **(index if self.indexed else {}),
        }

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape)
        (_, groups), scale_dtype = self.format.params_layout(rows, cols)["scale"]
        bits = self.format.bits
        zero: Layout = {"weight_zero_point": ((word_count(rows, bits), groups), WORD)}
        index: Layout = {"weight_g_idx": ((cols,), WORD)}
        return {
            "weight_packed": ((rows, word_count(cols, bits)), WORD),
            "weight_scale": ((rows, groups), scale_dtype),
            "weight_shape": ((2,), _SHAPE),
            **(zero if self.format.asymmetric else {}),
            **(index if self.indexed else {}),
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows; zero points are padded to whole words."""
        codes = as_numpy(tensor.codes)
        parts = {
            "weight_packed": pack_words(codes, self.format.bits),
            "weight_scale": checked_scale(as_numpy(tensor.params["scale"]), self.format.scale_dtype),
            "weight_shape": np.array(codes.shape, _SHAPE),
        }
        if self.format.asymmetric:
            zero = as_numpy(tensor.params["zero"])
            parts["weight_zero_point"] = np.ascontiguousarray(pack_words(zero.T, self.format.bits).T)
        return parts

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows.

        Columns in activation order are returned as groups of one. Raises TensorError if weight_shape contradicts the
        other parts, and for groups that do not exist.
        """
        scale = parts["weight_scale"]
        if int(parts["weight_shape"][1]) != cols:
            raise TensorError(
                f"weight_shape says {parts['weight_shape'].tolist()}, the other parts have {cols} columns; the file "
                "is damaged: download it again"
            )
        codes = unpack_words(parts["weight_packed"], self.format.bits, cols)
        params = {"scale": scale}
        if self.format.asymmetric:
            params["zero"] = self._zeros(parts)
        index = parts.get("weight_g_idx")
        if index is None or not self.format.group or np.array_equal(index, np.arange(cols) // self.format.group):
            return QuantTensor(self.format, codes, params)
        if (index == -1).all():  # compressed-tensors' mark for "in order"
            return QuantTensor(self.format, codes, params)
        if index.min() < 0 or index.max() >= scale.shape[1]:
            raise TensorError(
                f"weight_g_idx names group {int(index.max())}, but there are {scale.shape[1]}; the file is damaged: "
                "download it again"
            )
        single = Affine(self.format.bits, 1, self.format.asymmetric, self.format.precision)
        return QuantTensor(single, codes, {name: param[:, index] for name, param in params.items()})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        parts = join_slabs(self, slabs)
        shape = [len(parts["weight_packed"]), int(parts["weight_shape"][1])]
        return {**parts, "weight_shape": np.array(shape, _SHAPE)}

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`; weight_shape stays the tensor's."""
        cuts = {name: cut(parts[name], 0, start, stop) for name in ("weight_packed", "weight_scale")}
        if self.format.asymmetric:
            zero = pack_words(self._zeros(parts)[start:stop].T, self.format.bits)
            cuts["weight_zero_point"] = np.ascontiguousarray(zero.T)
        return {name: cuts.get(name, parts[name]) for name in parts}

    def _zeros(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """uint8 [rows, groups]."""
        packed = parts["weight_zero_point"].T
        return np.ascontiguousarray(unpack_words(packed, self.format.bits, len(parts["weight_scale"])).T)


@dataclass(frozen=True)
class IntegerCodec:
    """int-quantized: one signed byte per weight for all bit widths."""

    format: Affine

    @property
    def name(self) -> str:
        """The layout's name: "compressed/int8-channel", plus for instance "-f32" if scales are not bfloat16."""
        return layout_name("compressed", self.format, "bf16")

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape)
        scale_shape, scale_dtype = self.format.params_layout(rows, cols)["scale"]
        zero: Layout = {"weight_zero_point": (scale_shape, np.dtype(np.int8))}
        return {
            "weight": ((rows, cols), np.dtype(np.int8)),
            "weight_scale": (scale_shape, scale_dtype),
            **(zero if self.format.asymmetric else {}),
        }

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        parts = {
            "weight": self._signed(as_numpy(tensor.codes)),
            "weight_scale": checked_scale(as_numpy(tensor.params["scale"]), self.format.scale_dtype),
        }
        if self.format.asymmetric:
            parts["weight_zero_point"] = self._signed(as_numpy(tensor.params["zero"]))
        return parts

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for integers beyond the format's width."""
        params = {"scale": parts["weight_scale"]}
        if self.format.asymmetric:
            params["zero"] = self._unsigned(parts["weight_zero_point"])
        return QuantTensor(self.format, self._unsigned(parts["weight"]), params)

    @property
    def _half(self) -> int:
        return 1 << (self.format.bits - 1)

    def _signed(self, codes: np.ndarray) -> np.ndarray:
        return (codes.astype(np.int16) - self._half).astype(np.int8)

    def _unsigned(self, stored: np.ndarray) -> np.ndarray:
        codes = stored.astype(np.int16) + self._half
        if codes.size and (codes.min() < 0 or codes.max() >= 2 * self._half):
            wrong = stored[(codes < 0) | (codes >= 2 * self._half)][0]
            raise TensorError(
                f"{int(wrong)} does not fit {self.format.bits} bits; the file is damaged: download it again"
            )
        return codes.astype(np.uint8)


@dataclass(frozen=True)
class FloatCodec:
    """float-quantized: E4M3 bytes, with one scale per row, or one per tensor (format TensorWide).

    scale_shape: shape of a scale per tensor: (1,) in compressed-tensors; other tools write ()
    """

    format: Codebook | TensorWide
    scale_shape: tuple[int, ...] = (1,)

    @property
    def name(self) -> str:
        """The layout's name: "compressed/fp8-channel" or "compressed/fp8-tensor", plus unusual scales ("-f32")."""
        scope = "tensor" if isinstance(self.format, TensorWide) else "channel"
        precision = "" if self._row.precision == "bf16" else f"-{self._row.precision}"
        rank = "" if self.scale_shape == (1,) else f"-{len(self.scale_shape)}d"
        return f"compressed/fp8-{scope}{precision}{rank}"

    @property
    def row_multiple(self) -> int:
        """Rows are independent."""
        return 1

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """Rows lie along the first axis; a scale per tensor has none."""
        return {"weight": RowAxis(0), "weight_scale": None if isinstance(self.format, TensorWide) else RowAxis(0)}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises UnsupportedError for other shapes."""
        rows, cols = _matrix(shape)
        scale = self.scale_shape if isinstance(self.format, TensorWide) else (rows, 1)
        return {"weight": ((rows, cols), number_type(_E4M3)), "weight_scale": (scale, self._row.scale_dtype)}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows."""
        scale = checked_scale(as_numpy(tensor.params["scale"]), self._row.scale_dtype)
        if isinstance(self.format, TensorWide):
            scale = scale[0].reshape(self.scale_shape)
        weight = to_patterns(as_numpy(tensor.codes), self.format).view(number_type(_E4M3))
        return {"weight": weight, "weight_scale": scale}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows. Raises TensorError for NaN patterns."""
        codes = from_patterns(parts["weight"].view(np.uint8), self.format)
        scale = parts["weight_scale"]
        if isinstance(self.format, TensorWide):
            scale = np.broadcast_to(scale.reshape(1, 1), (len(codes), 1))
        return QuantTensor(self.format, codes, {"scale": np.ascontiguousarray(scale)})

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return join_slabs(self, slabs)

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        return {
            name: parts[name] if axis is None else cut(parts[name], axis.axis, start, stop)
            for name, axis in self.axes.items()
        }

    @property
    def _row(self) -> Codebook:
        row = self.format.row if isinstance(self.format, TensorWide) else self.format
        assert isinstance(row, Codebook)
        return row


def compressed_codec(format: Format) -> PackedCodec | FloatCodec | None:
    """The codec of packed integers or of FP8; None for other formats."""
    if isinstance(format, Affine):
        return PackedCodec(format)
    row = format.row if isinstance(format, TensorWide) else format
    if isinstance(row, Codebook) and row.name.startswith("fp8") and isinstance(format, Codebook | TensorWide):
        return FloatCodec(format)
    return None


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or not shape[0]:
        raise UnsupportedError(f"compressed-tensors' layouts hold matrices, not {list(shape)}; leave the tensor in f16")
    return shape[0], shape[1]

"""A weight with a stored input scale: the parts of another codec, plus compressed-tensors' `input_scale`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitsmith.containers.base import ModuleCodec, RowAxis, WholeTensorCodec, cut, join_slabs
from bitsmith.errors import TensorError, UsageError
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.precision import PRECISIONS
from bitsmith.quant.input_rounding import EPSILON, InputRounding
from bitsmith.quant.tensor import QuantTensor

INPUT_SCALE = "input_scale"
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass(frozen=True)
class StaticInput:
    """The parts of `weights`, and an input scale.

    input_rounding: int8 or fp8 with scope "tensor"; its scale is None until `with_input_absmax`, and only `encode`
        needs it
    precision: precision of the input scale, "bf16", "f16" or "f32"; compressed-tensors uses the model's own
    shape: shape of the input scale: (1,) in compressed-tensors; other tools write ()
    """

    weights: ModuleCodec
    input_rounding: InputRounding
    precision: str
    shape: tuple[int, ...] = (1,)

    @property
    def name(self) -> str:
        """The layout's name: "compressed/int8-channel-static", plus "-f32" or "-0d" for another precision or shape."""
        precision = "" if self.precision == "bf16" else f"-{self.precision}"
        rank = "" if self.shape == (1,) else f"-{len(self.shape)}d"
        return f"{self.weights.name}-static{precision}{rank}"

    @property
    def format(self) -> Format:
        """Format of the weights."""
        return self.weights.format

    @property
    def row_multiple(self) -> int:
        """See `WholeTensorCodec`."""
        return self.weights.row_multiple if isinstance(self.weights, WholeTensorCodec) else 1

    @property
    def axes(self) -> dict[str, RowAxis | None]:
        """The axes of the weights' parts; the input scale has none."""
        axes: dict[str, RowAxis | None] = {INPUT_SCALE: None}
        if isinstance(self.weights, WholeTensorCodec):
            return {**self.weights.axes, **axes}
        return {**dict.fromkeys(self.weights.layout((1, self.format.multiple)), RowAxis(0)), **axes}

    @property
    def rounding(self) -> InputRounding | None:
        """How bitsmith rounds the inputs; None: not at all."""
        return self.input_rounding

    def with_input_absmax(self, largest: float) -> StaticInput:
        """The same codec with a scale for inputs of magnitude up to `largest`.

        Raises TensorError if the scale does not fit its precision.
        """
        with np.errstate(over="ignore"):
            scale = self.input_rounding.scale_of(np.array([largest], np.float32)).astype(PRECISIONS[self.precision])
        if not np.isfinite(scale).all():
            raise TensorError(
                f"the input reaches {largest:.6g}, whose scale does not fit {self.precision}; leave the layer in 16 "
                "bits with --keep, or calibrate on another text"
            )
        stored = float(scale[0]) or EPSILON  # replaces a scale that rounds to zero
        return replace(self, input_rounding=replace(self.input_rounding, scale=stored))

    def read(self, parts: Mapping[str, np.ndarray]) -> InputRounding | None:
        """Input rounding of a stored weight. Raises TensorError if its scale is not finite and above zero."""
        scale = float(parts[INPUT_SCALE].astype(np.float32).reshape(()))
        if not (math.isfinite(scale) and scale > 0):
            raise TensorError(f"its {INPUT_SCALE} is {scale}; expected a number above zero: make the file again")
        return replace(self.input_rounding, scale=scale)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Stored shape and dtype of each part of a weight [out, in]. Raises as the codec of the weights does."""
        return {**self.weights.layout(shape), INPUT_SCALE: (self.shape, PRECISIONS[self.precision])}

    def encode(self, tensor: QuantTensor) -> dict[str, np.ndarray]:
        """Parts of a slab of whole rows. Raises UsageError before `with_input_absmax`."""
        if self.input_rounding.scale is None:
            raise UsageError(
                f"{self.name} stores a scale of the weight's input, which comes from calibration; first call "
                "codec.with_input_absmax(largest) with the largest magnitude of the input"
            )
        scale = np.full(self.shape, self.input_rounding.scale, PRECISIONS[self.precision])
        return {**self.weights.encode(tensor), INPUT_SCALE: scale}

    def decode(self, parts: Mapping[str, np.ndarray], cols: int) -> QuantTensor:
        """Codes and parameters of a slab of whole rows; the input scale does not affect them."""
        return self.weights.decode(parts, cols)

    def join(self, slabs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        joined = self.weights.join(slabs) if isinstance(self.weights, WholeTensorCodec) else join_slabs(self, slabs)
        return {**joined, INPUT_SCALE: slabs[0][INPUT_SCALE]}

    def window(self, parts: Mapping[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
        """See `WholeTensorCodec`."""
        if isinstance(self.weights, WholeTensorCodec):
            rest = {name: part for name, part in parts.items() if name != INPUT_SCALE}
            found = self.weights.window(rest, start, stop)
        else:
            found = {name: cut(parts[name], 0, start, stop) for name in parts if name != INPUT_SCALE}
        return {**found, INPUT_SCALE: parts[INPUT_SCALE]}

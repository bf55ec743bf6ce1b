"""InputRounding: how the input of a linear is rounded before its product, where a file says so (w8a8, fp8).

The arithmetic is compressed-tensors' (0.20, `calculate_qparams` and `fake_quantize`), to the last bit on float32.
vLLM's own kernels differ by a hair: most divide by 127 where this divides by 127.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from array_api_compat import array_namespace, is_torch_array

from bitsmith.quant.grid import Array

EPSILON = float(np.finfo(np.float32).eps)  # the scale of an input that is zero throughout
_LOWEST = {"int8": -128.0, "fp8": -448.0}
_LARGEST = {"int8": 127.0, "fp8": 448.0}
TYPES = tuple(_LARGEST)


@dataclass(frozen=True)
class InputRounding:
    """Symmetric rounding with one scale a token or a tensor.

    type: "int8" (half to even) or "fp8" (E4M3, half to even, saturating at 448)
    scope: of a scale: "token", a row of the input, or "tensor", all that one product is given
    scale: stored with the weight; None where each input gives its own: its absmax over half the type's range
    """

    type: str
    scope: str
    scale: float | None = None

    def __str__(self) -> str:
        """ "int8 a token", "fp8 a tensor, scale 0.0213"."""
        stored = "" if self.scale is None else f", scale {self.scale:.4g}"
        return f"{self.type} a {self.scope}{stored}"

    def scale_of(self, largest: Array) -> Array:
        """The scale of inputs whose largest magnitude is `largest`: float32, any shape."""
        xp = array_namespace(largest)
        scale = largest / ((_LARGEST[self.type] - _LOWEST[self.type]) / 2)
        return xp.where(scale == 0, xp.full_like(scale, EPSILON), scale)

    def rounded(self, x: Array) -> Array:
        """An input float32 [..., cols], numpy or torch, as it is after rounding: float32 [..., cols].

        A scale of a tensor that the input gives is one for the whole batch: results depend on what is in it.
        """
        xp = array_namespace(x)
        if self.scale is not None:
            scale = xp.full((1,), self.scale, dtype=x.dtype, device=x.device)
        else:
            axis = -1 if self.scope == "token" else None
            scale = self.scale_of(xp.max(xp.abs(x), axis=axis, keepdims=True))
        scaled = xp.clip(x / scale, _LOWEST[self.type], _LARGEST[self.type])
        if self.type == "fp8":
            return xp.astype(xp.astype(scaled, _e4m3(xp, x)), x.dtype) * scale
        return xp.round(scaled) * scale


def _e4m3(xp: Any, x: Array) -> Any:
    return xp.float8_e4m3fn if is_torch_array(x) else ml_dtypes.float8_e4m3fn

"""InputRounding: how the input of a linear is rounded before the matrix product, if a file asks for it (w8a8, fp8).

The arithmetic equals compressed-tensors' (0.20, `calculate_qparams` and `fake_quantize`) to the last bit in float32.
vLLM's own kernels differ slightly: most divide by 127 instead of 127.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from array_api_compat import array_namespace, is_torch_array

from bitsmith.quant.grid import Array

EPSILON = float(np.finfo(np.float32).eps)  # the scale of an input of zeros
_LOWEST = {"int8": -128.0, "fp8": -448.0}
_LARGEST = {"int8": 127.0, "fp8": 448.0}
TYPES = tuple(_LARGEST)


@dataclass(frozen=True)
class InputRounding:
    """Symmetric rounding with one scale per token or per tensor.

    type: "int8" (half to even) or "fp8" (E4M3, half to even, saturating at 448)
    scope: what one scale covers: "token", a row of the input, or "tensor", the whole input of one product
    scale: the scale stored with the weight; None if it comes from each input: absmax over half the type's range
    """

    type: str
    scope: str
    scale: float | None = None

    def __str__(self) -> str:
        """ "int8, per token", "fp8, per tensor, scale 0.0213"."""
        stored = "" if self.scale is None else f", scale {self.scale:.4g}"
        return f"{self.type}, per {self.scope}{stored}"

    def scale_of(self, largest: Array) -> Array:
        """The scale of inputs whose largest magnitude is `largest`: float32, any shape."""
        xp = array_namespace(largest)
        scale = largest / ((_LARGEST[self.type] - _LOWEST[self.type]) / 2)
        return xp.where(scale == 0, xp.full_like(scale, EPSILON), scale)

    def rounded(self, x: Array) -> Array:
        """Round an input, float32 [..., cols], numpy or torch -> float32 [..., cols].

        With scope "tensor" and no stored scale, the whole batch shares a scale, so results depend on the batch.
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

"""InputRounding: how the input of a linear is rounded before the matrix product, if a file asks for it (w8a8, fp8).

The arithmetic equals compressed-tensors' (0.20, `calculate_qparams` and `fake_quantize`) to the last bit in float32.
vLLM's own kernels differ slightly: most divide by 127 instead of 127.5.

LLM.int8() (Dettmers et al. 2022, section 3.2; "llm.int8") leaves columns alone in which any input of a product reaches
a threshold. All other inputs become int8 with one scale a token, absmax / 127, as bitsandbytes computes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from bitsmith.errors import UsageError, quoted
from bitsmith.quant.grid import Array
from bitsmith.system.number_types import number_type

EPSILON = float(np.finfo(np.float32).eps)  # the scale of an input of zeros
LLM_INT8 = "llm.int8"
THRESHOLD = 6.0  # of LLM.int8(), as published
_LOWEST = {"int8": -128.0, LLM_INT8: -127.0, "fp8": -448.0}
_LARGEST_F16 = 65504.0
_LARGEST = {"int8": 127.0, LLM_INT8: 127.0, "fp8": 448.0}
TYPES = tuple(_LARGEST)


@dataclass(frozen=True)
class InputRounding:
    """Symmetric rounding with one scale per token or per tensor.

    type: "int8" or "llm.int8" (half to even) or "fp8" (E4M3, half to even, saturating at 448)
    scope: what one scale covers: "token", a row of the input, or "tensor", the whole input of one product
    scale: the scale stored with the weight; None if it comes from each input: absmax over half the type's range
    threshold: of "llm.int8": columns in which any input is as large stay as they are; 0: none does
    """

    type: str
    scope: str
    scale: float | None = None
    threshold: float = 0.0

    @classmethod
    def parse(cls, text: str) -> InputRounding | None:
        """Read "int8", "fp8", "llm.int8", "llm.int8:5.5", one scale a token each; None for "none".

        Raises UsageError for another word, or a threshold that is no positive number.
        """
        name, colon, number = text.strip().lower().partition(":")
        if name == "none" and not colon:
            return None
        if name not in TYPES or (colon and name != LLM_INT8):
            raise UsageError(
                f"--inputs={quoted(text)}: unknown; expected none, {', '.join(TYPES)}, or {LLM_INT8}:THRESHOLD."
            )
        if name != LLM_INT8:
            return cls(name, "token")
        try:
            threshold = float(number) if colon else THRESHOLD
        except ValueError:
            threshold = math.nan
        if not 0.0 < threshold < math.inf:
            raise UsageError(f"--inputs={quoted(text)}: the threshold must be a positive number, such as {THRESHOLD}.")
        return cls(name, "token", threshold=threshold)

    def __str__(self) -> str:
        """ "int8, per token", "fp8, per tensor, scale 0.0213", "llm.int8, per token, threshold 6"."""
        stored = "" if self.scale is None else f", scale {self.scale:.4g}"
        threshold = f", threshold {self.threshold:.4g}" if self.threshold else ""
        return f"{self.type}, per {self.scope}{stored}{threshold}"

    def scale_of(self, largest: Array) -> Array:
        """The scale of inputs whose largest magnitude is `largest`: float32, any shape."""
        xp = array_namespace(largest)
        scale = largest / ((_LARGEST[self.type] - _LOWEST[self.type]) / 2)
        return xp.where(scale == 0, xp.full_like(scale, EPSILON), scale)

    def rounded(self, x: Array) -> Array:
        """Round an input, float32 [..., cols], numpy or torch -> float32 [..., cols].

        With scope "tensor" and no stored scale, the whole batch shares a scale, so results depend on the batch. So do
        the columns of LLM.int8() that stay.
        """
        if self.type == LLM_INT8:
            return self._mixed(x)
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

    def _mixed(self, x: Array) -> Array:
        """LLM.int8(): float16 first, as bitsandbytes does, then int8 except for the columns that stay."""
        xp = array_namespace(x)
        half = xp.astype(xp.astype(xp.clip(x, -_LARGEST_F16, _LARGEST_F16), xp.float16), x.dtype)
        large = xp.abs(half) >= (self.threshold or math.inf)
        rest = xp.where(large, xp.zeros_like(x), half)
        absmax = xp.max(xp.abs(rest), axis=-1, keepdims=True)
        inverse = 1.0 / xp.where(absmax > 0, absmax, xp.ones_like(absmax)) * _LARGEST[LLM_INT8]
        rounded = xp.round(rest * inverse) * (absmax / _LARGEST[LLM_INT8])
        columns = xp.any(xp.reshape(large, (-1, x.shape[-1])), axis=0)
        return xp.where(columns, x, rounded)


def _e4m3(xp: Any, x: Array) -> Any:
    return xp.float8_e4m3fn if is_torch_array(x) else number_type("float8_e4m3fn")

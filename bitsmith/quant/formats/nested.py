"""Double quantization over a whole tensor, as bitsandbytes stores it (Dettmers et al. 2023, QLoRA, section 3).

The scales of all blocks, in the order of the tensor's bytes, minus their mean, get 8-bit codes on the dynamic map, with
one range for each 256 of them. Blocks of 256 scales cross rows, so the scales of a tensor are stored together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from bitsmith.quant.formats.base import Params, StoredScales
from bitsmith.quant.formats.fourbit import FourBit, dynamic_map
from bitsmith.quant.formats.precision import FLOAT32, as_numpy
from bitsmith.quant.grid import Array, Grid

NESTED_BLOCK = 256  # scales that share a range
_STEPS = 65535  # bitsandbytes on CPU rounds a scale to this many steps first


@dataclass(frozen=True)
class NestedScales:
    """Doubly quantized scales.

    codes: uint8 [scales]
    ranges: float32 [ceil(scales / 256)], largest distance of 256 scales from the mean
    mean: of all scales
    """

    codes: np.ndarray
    ranges: np.ndarray
    mean: np.float32

    def values(self, table: np.ndarray) -> np.ndarray:
        """The scales: float32 [scales]. table: what the codes mean, float32 [256]"""
        ranges = np.repeat(self.ranges, NESTED_BLOCK)[: len(self.codes)]
        return np.asarray(table[self.codes] * ranges + self.mean, np.float32)


def nest(scales: np.ndarray) -> NestedScales:
    """Quantize the scales of a tensor, float32 [scales].

    The codes are those of bitsandbytes 0.50 on CPU for the same mean. Its own mean is summed in float32, in an order
    that depends on the machine, so its last bits may differ.
    """
    mean = np.float32(scales.mean(dtype=np.float64)) if scales.size else np.float32(0.0)
    away = scales - mean
    padded = np.pad(away, (0, -len(away) % NESTED_BLOCK)).reshape(-1, NESTED_BLOCK)
    ranges = np.abs(padded).max(axis=1)
    with np.errstate(over="ignore"):  # the smallest ranges; the product is clipped
        inverse = np.float32(1.0) / np.where(ranges > 0, ranges, np.float32(1.0))
    units = np.clip(padded * inverse[:, None], -1.0, 1.0).astype(np.float32)
    steps = ((units + np.float32(1.0)) * np.float32(0.5)).astype(np.float64) * _STEPS + 0.5
    codes = _nearest_of_step()[steps.astype(np.float32).astype(np.int64)]
    codes[ranges == 0] = 0
    return NestedScales(codes.reshape(-1)[: len(scales)], ranges, mean)


@lru_cache
def _nearest_of_step() -> np.ndarray:
    """The code nearest to each step of -1..1: uint8 [65536]."""
    table = dynamic_map()
    middles = np.float32(0.5) * (table[:-1] + table[1:])
    steps = np.float32(-1.0) + np.arange(_STEPS + 1, dtype=np.float32) * np.float32(2.0) / np.float32(_STEPS)
    return np.searchsorted(middles, steps, side="left").astype(np.uint8)


@dataclass(frozen=True)
class Nested:
    """A four-bit format whose scales are quantized over the whole tensor; see `Settled`.

    settled_params: parameters of the tensor's rows, float32 [rows, blocks]; None before `settled_on`. They are not
        compared.

    Parameters: "scale", as it decodes; and once settled "absmax", from which it was quantized.
    """

    plain: FourBit
    settled_params: Mapping[str, np.ndarray] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The plain format's name with "-nested"."""
        return f"{self.plain.name}-nested"

    @property
    def bits(self) -> int:
        """See `Format`."""
        return self.plain.bits

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.plain.multiple

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """scale: float32 [rows, blocks]. Raises UnsupportedError if blocks do not divide the row."""
        return self.plain.params_layout(rows, cols)

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """Scales of the plain format; those of the tensor where they are settled."""
        return self.plain.fit(w, importance) if self.settled_params is None else dict(self.settled_params)

    def reference(self, w: Array) -> tuple[Array, Params]:
        """See `ReferenceCoded`: bitsandbytes chooses codes by absmax, before it quantizes absmax."""
        codes, params = self.plain.reference(w)
        return codes, params if self.settled_params is None else dict(self.settled_params)

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        return self.plain.project(params, blocks, scale, offset)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        return self.plain.grid(params)

    def settled(self, params: Params) -> dict[str, np.ndarray]:
        """See `Settled`."""
        absmax = np.ascontiguousarray(as_numpy(params["scale"]), FLOAT32)
        scale = nest(absmax.reshape(-1)).values(dynamic_map()).reshape(absmax.shape)
        return {"scale": np.maximum(scale, np.float32(0.0)), "absmax": absmax}

    def settled_on(self, params: Mapping[str, np.ndarray]) -> Nested:
        """See `Settled`."""
        return replace(self, settled_params=params)

"""Row-wise int8 as LLM.int8() stores it (Dettmers et al. 2022): integers of -128..127 and the absmax of each row.

value = absmax / 127 * code. The values are those of int8-channel; the parameter is absmax itself, so that a file keeps
it exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from bitsmith.quant.formats.affine import Affine, extents
from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.precision import FLOAT32
from bitsmith.quant.formats.search import search, usable
from bitsmith.quant.grid import Array, Grid

_TOP = 127.0
_INTEGERS = Affine(8, 0)


@dataclass(frozen=True)
class RowAbsmax:
    """Parameters: "absmax" float32 [rows, 1]."""

    @property
    def name(self) -> str:
        """See `Format`."""
        return "int8-absmax"

    @property
    def bits(self) -> int:
        """See `Format`."""
        return 8

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return 1

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """absmax: float32 [rows, 1]."""
        check_row(self.name, cols, 1)
        return {"absmax": ((rows, 1), FLOAT32)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """The absmax of each row; with importance the best of several clip ratios of it, see `search`."""
        check_row(self.name, w.shape[1], 1)
        if usable(importance):
            return search(w, importance, self._candidates, self.grid)
        return {"absmax": _absmax(w)}

    def reference(self, w: Array) -> tuple[Array, Params]:
        """See `ReferenceCoded`: the codes of bitsandbytes 0.50, which rounds weights to float16 first.

        They are w * (1 / absmax * 127), half to even.
        """
        xp = array_namespace(w)
        with np.errstate(over="ignore"):  # beyond float16 a weight becomes infinite; the writer refuses it
            w = xp.astype(xp.astype(w, xp.float16), xp.float32)
        absmax = _absmax(w)
        inverse = 1.0 / xp.where(absmax > 0, absmax, xp.ones_like(absmax)) * _TOP
        with np.errstate(invalid="ignore"):
            integers = xp.clip(xp.round(w * inverse), -_TOP, _TOP)
            if not is_torch_array(integers):
                integers = np.nan_to_num(integers)
        return xp.astype(integers + 128.0, xp.uint8), {"absmax": absmax}

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; scales are never negative."""
        xp = array_namespace(scale)
        absmax = xp.clip(scale, 0.0, None) * _TOP
        return StoredScales({"absmax": absmax}, absmax * (1.0 / _TOP), None)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        return _INTEGERS.grid({"scale": params["absmax"] * (1.0 / _TOP)})

    def _candidates(self, w: Array) -> Iterator[Params]:
        absmax = _absmax(w)
        for step in range(21):
            yield {"absmax": absmax * (1.0 - 0.025 * step)}


def _absmax(w: Array) -> Array:
    low, high = extents(w, 0)
    xp = array_namespace(w)
    return xp.maximum(xp.abs(low), xp.abs(high))

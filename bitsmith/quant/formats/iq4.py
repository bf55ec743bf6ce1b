"""IQ4_NL: four-bit codes into a table of 16 uneven levels. IQ4_XS uses the same levels.

Layout and table: ggml-common.h (`kvalues_iq4nl`) and ggml-quants.c (`dequantize_row_iq4_nl`) of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.quant.formats.base import Params, StoredScales
from bitsmith.quant.formats.core_fit import Search, fitted
from bitsmith.quant.formats.ggml_simple import BLOCK, choose_scale, project_d
from bitsmith.quant.formats.precision import FLOAT16, to_float32
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.scale_search import Levels, fit_chunks

IQ4_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
IQ4_LEVELS = Levels(-127, 113, IQ4_TABLE)
# levels tried for the weight of largest magnitude, at both ends of the uneven table
IQ4_TARGETS = (-100.0, -106.0, -112.0, -118.0, -124.0, -130.0, -136.0, 90.0, 96.0, 102.0, 108.0, 114.0, 120.0)


@dataclass(frozen=True)
class IQ4NL:
    """value = d * table[code]; d may be negative."""

    name: str = "iq4_nl"
    bits: int = 4
    multiple: int = BLOCK

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d: float16 [rows, cols / 32]."""
        return {"d": ((rows, cols // BLOCK), FLOAT16)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`."""
        return fitted(self, w, importance)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        return Search(self.name, IQ4_TARGETS)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, BLOCK, 1, self._choose)

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        return project_d(scale)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        d = to_float32(params["d"])
        return Grid(IQ4_LEVELS.entries(d), d, None, BLOCK)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        return {"d": choose_scale(x, weight, IQ4_LEVELS, IQ4_TARGETS)}

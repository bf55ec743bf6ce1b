"""Q1_0, Q2_0, TQ1_0 and TQ2_0 of ggml: two to four levels, and one float16 scale for a long block.

Layouts and value formulas: ggml-quants.c (`dequantize_row_q1_0`, `dequantize_row_q2_0`, `dequantize_row_tq1_0`,
`dequantize_row_tq2_0`) of llama.cpp. Scales are searched; ggml takes the largest weight, which only suits models that
were trained with such weights. Their weights are met exactly here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.core_fit import Search, fitted
from bitsmith.quant.formats.ggml_simple import choose_scale, project_d
from bitsmith.quant.formats.precision import FLOAT16, to_float32
from bitsmith.quant.grid import Array, Grid
from bitsmith.quant.scale_search import Levels, fit_chunks

_TERNARY = tuple(round(1.0 * 1.17**i, 4) for i in range(16))  # 1 .. 10.5


@dataclass(frozen=True)
class FewLevels:
    """value = d * level.

    bits: bits of a code, before codes of TQ1_0 are packed by fives
    multiple: weights of a block
    targets: levels tried for the largest weight of a block, see `search_scale`
    """

    name: str
    bits: int
    multiple: int
    levels: Levels
    targets: tuple[float, ...]

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d: float16 [rows, cols / multiple]."""
        return {"d": ((rows, check_row(self.name, cols, self.multiple) // self.multiple), FLOAT16)}

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`."""
        return fitted(self, w, importance)

    @property
    def search(self) -> Search:
        """See `Searched.search`."""
        return Search(self.name, self.targets)

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """See `Searched.fit_reference`."""
        return fit_chunks(w, importance, self.multiple, 1, self._choose)

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`."""
        return project_d(scale)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        d = to_float32(params["d"])
        return Grid(self.levels.entries(d), d, None, self.multiple)

    def _choose(self, x: Array, weight: Array | None) -> dict[str, Array]:
        return {"d": choose_scale(x, weight, self.levels, self.targets)}


FEW_LEVELS: tuple[FewLevels, ...] = (
    FewLevels("q1_0", 1, 128, Levels(-1, 1, (-1, 1)), (1.0,)),
    FewLevels("q2_0", 2, 64, Levels(-1, 2), (*(1.2 + 0.2 * i for i in range(12)), *(-0.8 - 0.2 * i for i in range(9)))),
    FewLevels("tq1_0", 2, 256, Levels(-1, 1), _TERNARY),
    FewLevels("tq2_0", 2, 256, Levels(-1, 1), _TERNARY),
)

"""IQ1, IQ2 and IQ3 of ggml: vectors of eight weights from code books, with integer scales times a float16.

Layouts and value formulas: ggml-quants.c (`dequantize_row_iq1_s` ... `dequantize_row_iq3_s`) of llama.cpp. The search
is our own: it finds the best point of the book for each vector at every scale that it tries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Params, StoredScales, check_row
from bitsmith.quant.formats.precision import FLOAT16, UINT8, to_float32
from bitsmith.quant.grid import Array
from bitsmith.quant.scale_search import inverse
from bitsmith.quant.vector_grid import CodeBook, VectorGrid

SUPER = 256  # weights in a super-block
SHIFT = 0.125  # what the levels of IQ1 are shifted by
_SHIFTED = 32  # weights that share a shift in IQ1_S


@dataclass(frozen=True)
class CodeBookFormat:
    """value = levels(code) * d * unit * (2 scales + 1).

    block: number of weights that share a scale
    top: largest integer scale
    typical: root mean square of the book's levels, from which the search starts
    shifts: whether each block has a shift of its levels, by -1/8 or 1/8 (IQ1_S)
    """

    name: str
    bits: int
    book: CodeBook
    block: int
    top: int
    unit: float
    typical: float
    shifts: bool = False
    multiple: int = SUPER

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """d: float16 [rows, cols / 256]; scales: uint8 [rows, cols / block]; IQ1_S: shifts: uint8 [rows, cols / 32]."""
        check_row(self.name, cols, SUPER)
        layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            "d": ((rows, cols // SUPER), FLOAT16),
            "scales": ((rows, cols // self.block), UINT8),
        }
        return layout | ({"shifts": ((rows, cols // _SHIFTED), UINT8)} if self.shifts else {})

    @property
    def integer_ranges(self) -> dict[str, tuple[int, int]]:
        """Range of the blocks' scales."""
        return {"scales": (0, self.top)}

    def nearest(self, w: Array, importance: Array | None = None) -> tuple[Array, Params]:
        """See `VectorFormat.nearest`."""
        from bitsmith.quant.book_search import round_vectors

        return round_vectors(self, w, importance)

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """See `Format.fit`."""
        return self.nearest(w, importance)[1]

    def grid(self, params: Params) -> VectorGrid:
        """See `Format.grid`."""
        scale = self.scales(params)
        if not self.shifts:
            return VectorGrid(self.book, scale, None, self.block)
        side = SHIFT - 2.0 * SHIFT * to_float32(params["shifts"])
        return VectorGrid(self.book, scale, side, self.block)

    def scales(self, params: Params) -> Array:
        """The scale of each block: float32 [rows, cols / block]."""
        xp = array_namespace(params["d"])
        d = xp.repeat(to_float32(params["d"]), SUPER // self.block, axis=1)
        return d * (self.unit * (2.0 * to_float32(params["scales"]) + 1.0))

    def project(self, params: Params, blocks: slice, scale: Array, offset: Array | None) -> StoredScales:
        """See `Refittable.project`; d and the shifts do not change."""
        xp = array_namespace(scale)
        d = xp.repeat(to_float32(params["d"]), SUPER // self.block, axis=1)[:, blocks]
        q = xp.clip(xp.round(scale * inverse(d * (2.0 * self.unit)) - 0.5), 0.0, float(self.top))
        stored = d * (self.unit * (2.0 * q + 1.0))
        return StoredScales({"scales": xp.astype(q, xp.uint8)}, stored, None)


CODE_BOOKS: tuple[CodeBookFormat, ...] = (
    CodeBookFormat("iq1_s", 1, CodeBook("iq1_s", "IQ1_S", 11, 1), 32, 7, 1.0, 0.77, shifts=True),
    CodeBookFormat("iq1_m", 1, CodeBook("iq1_m", "IQ1_S", 11, 1, shifted=True), 16, 7, 1.0, 0.77),
    CodeBookFormat("iq2_xxs", 2, CodeBook("iq2_xxs", "IQ2_XXS", 8, 1, signed=True, even=True), 32, 15, 0.125, 23.1),
    CodeBookFormat("iq2_xs", 2, CodeBook("iq2_xs", "IQ2_XS", 9, 1, signed=True, even=True), 16, 15, 0.125, 24.2),
    CodeBookFormat("iq2_s", 2, CodeBook("iq2_s", "IQ2_S", 10, 1, signed=True), 16, 15, 0.125, 24.4),
    CodeBookFormat("iq3_xxs", 3, CodeBook("iq3_xxs", "IQ3_XXS", 8, 2, signed=True, even=True), 32, 15, 0.25, 30.8),
    CodeBookFormat("iq3_s", 3, CodeBook("iq3_s", "IQ3_S", 9, 2, signed=True), 32, 15, 1.0, 7.59),
)

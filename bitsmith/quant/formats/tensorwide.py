"""One scale for a whole tensor. The tensor's extent must be given before slabs of rows are fitted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from array_api_compat import array_namespace

from bitsmith.errors import UsageError
from bitsmith.quant.formats.affine import Affine
from bitsmith.quant.formats.base import Params
from bitsmith.quant.formats.codebook import Codebook
from bitsmith.quant.grid import Array, Grid


@dataclass(frozen=True)
class TensorWide:
    """A format of whole rows with the same parameters in every row of a tensor.

    row: the format with one scale per row
    low, high: the tensor's extent; None until `with_extent`. Only `fit` needs them. They are not compared.

    Parameters are kept once per row, so that slabs of rows are independent; this costs 4 bytes per row.
    """

    name: str
    row: Affine | Codebook
    low: float | None = field(default=None, compare=False)
    high: float | None = field(default=None, compare=False)

    @property
    def bits(self) -> int:
        """See `Format`."""
        return self.row.bits

    @property
    def multiple(self) -> int:
        """See `Format`."""
        return self.row.multiple

    def with_extent(self, low: float, high: float) -> TensorWide:
        """The same format for a tensor whose smallest weight is `low` and largest is `high`."""
        return replace(self, low=low, high=high)

    def params_layout(self, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """See `Format.params_layout`: the same as the row's format."""
        return self.row.params_layout(rows, cols)

    def fit(self, w: Array, importance: Array | None = None) -> Params:
        """absmax or min-max of the extent. Importance is not used, because a slab is only a part of the tensor.

        Raises UsageError before `with_extent`.
        """
        if self.low is None or self.high is None:
            raise UsageError(
                f"{self.name} has one scale per tensor and needs the tensor's extent; first call "
                "format.with_extent(low, high) with its smallest and largest weight"
            )
        xp = array_namespace(w)
        ones = xp.ones((w.shape[0], 1), dtype=xp.float32, device=w.device)
        return self.row.from_extent(ones * self.low, ones * self.high)

    def grid(self, params: Params) -> Grid:
        """See `Format.grid`."""
        return self.row.grid(params)

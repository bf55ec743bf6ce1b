"""RoundedRows: rows of a tensor that a calibrated method has rounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitsmith.quant.tensor import QuantTensor


@dataclass(frozen=True)
class RoundedRows:
    """Rows of one tensor, in the source's order.

    name: GGUF's name ("blk.0.attn_q.weight")
    start: number of the first row; pieces of one tensor come in order, and each holds whole chunks of the executor
    weight: float32 [rows, cols], the weights that the codes approximate: the source's, rescaled by the transforms; a
        vector is one row
    tensor: the codes as numpy arrays; None for a tensor that is stored as floats
    """

    name: str
    start: int
    weight: np.ndarray
    tensor: QuantTensor | None

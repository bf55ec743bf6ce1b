"""The embeddings of layers (Gemma 3n and 4): for each token and layer, a row of a table and a projection, added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.runtime.kernel import Ops, Tensor, Weight

if TYPE_CHECKING:
    from bitsmith.runtime.weights import Linear


@dataclass(frozen=True)
class LayerTable:
    """The table of all tokens and layers, [vocab, layers * width]. It is large: rows are read when they are needed."""

    weight: Weight

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """int64 [rows, n] -> float32 [rows, n, layers * width]; each different row is read once."""
        found, places = np.unique(ids, return_inverse=True)
        rows = np.concatenate([self.weight.rows(int(token), int(token) + 1) for token in found])
        return np.ascontiguousarray(rows[places.reshape(ids.shape)], np.float32)


@dataclass(frozen=True)
class LayerWeights:
    """The tensors that the embeddings of layers are made of.

    ops: those that the decoder runs on
    width: of one layer's embedding
    projections: for each layer, a matrix [width, hidden] that reads the first hidden states
    norm: float32 [width], of the projections
    """

    ops: Ops
    width: int
    table: LayerTable
    projections: tuple[Linear, ...]
    norm: Tensor


class LayerInputs:
    """The embeddings of layers for the tokens of one pass.

    ids: int64 [rows, n]
    first: float32 [rows, n, hidden], the first hidden states of these tokens
    """

    def __init__(self, weights: LayerWeights, ids: np.ndarray, first: Tensor, eps: float) -> None:
        self._weights, self._ids, self._first, self._eps = weights, ids, first, eps
        self._rows: Tensor = None

    def of(self, layer: int) -> Tensor:
        """float32 [rows, n, width]."""
        weights, width = self._weights, self._weights.width
        if self._rows is None:
            self._rows = weights.ops.array(weights.table.gather(self._ids))
        projected = weights.projections[layer](self._first) * self._first.shape[-1] ** -0.5
        projected = weights.ops.rms_norm(projected, weights.norm, self._eps)
        own = self._rows[..., layer * width : (layer + 1) * width] * width**0.5
        return (projected + own) * 2**-0.5

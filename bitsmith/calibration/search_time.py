"""Time of GPTQ's searches that grows with the weights: points of code books, and the scales of K types."""

from __future__ import annotations

from collections.abc import Iterable

from bitsmith.calibration.method import Method
from bitsmith.quant.formats.base import VectorFormat
from bitsmith.quant.formats.kquants import AffineK, SymmetricK
from bitsmith.quant.rounders.effort import EFFORTS
from bitsmith.recipe.plan import PlannedTensor

# seconds a weight of one thread: GPTQ's pass, each sweep of descent; fitted to the reference model (docs/LOG.md)
_BOOKS = (0.45e-6, 0.25e-6)
_K_TYPES = (0.1e-6, 0.2e-6)


def search_seconds(tensors: Iterable[PlannedTensor], method: Method, effort: str, threads: int) -> float:
    """Expected time of these searches for all tensors; 0 for methods that do not round by columns."""
    if not method.row.by_column:
        return 0.0
    sweeps, found = EFFORTS[effort].sweeps, 0.0
    for tensor in tensors:
        if isinstance(tensor.format, VectorFormat):
            found += tensor.info.parameters * (_BOOKS[0] + sweeps * _BOOKS[1])
        elif isinstance(tensor.format, AffineK | SymmetricK):
            found += tensor.info.parameters * (_K_TYPES[0] + sweeps * _K_TYPES[1])
    return found / threads

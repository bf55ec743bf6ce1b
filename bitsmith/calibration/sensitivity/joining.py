"""Joins two estimates of what types cost: products, which see the whole Fisher matrix but are noisy, and its diagonal.

The ratio of both, as a logarithm, is that of the matrix, and that of the type: errors of some types (Q2_K, code books)
are not independent from weight to weight, in every matrix of a block. Each is a mean over many products. What is left
differs little, so that little of it counts. Embedding and head are not like matrices of blocks: they have a ratio of
their own, and no part in those of types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEFT = 0.05  # how far, as a logarithm, the ratio differs among matrices and types beside the two means
_OF_TYPE = 0.3  # and among types, in all matrices


@dataclass(frozen=True)
class Cost:
    """Expected divergence of rounding one matrix, nats a token, by error: float64 [errors].

    direct: from products alone; diagonal: from squares alone; windows: number of products of each error
    """

    direct: np.ndarray
    diagonal: np.ndarray
    windows: int

    @property
    def known(self) -> np.ndarray:
        """Of which errors both are above zero, bool [errors]."""
        return np.asarray((self.diagonal > 0) & (self.direct > 0))

    @property
    def noise(self) -> float:
        """Variance of the logarithm of a mean of squared normal numbers."""
        return 2.0 / max(self.windows, 1)


def joined(costs: Sequence[Cost], types: Sequence[Sequence[str]], alone: Sequence[bool]) -> list[np.ndarray]:
    """The estimate: float64 [errors] of each matrix.

    types: of each error of each matrix
    alone: which matrices are not like the others: embedding and head
    """
    ratios = [_ratio(each) for each in costs]
    both = zip(ratios, costs, strict=True)
    middles = [float(ratio[each.known].mean()) if each.known.any() else 0.0 for ratio, each in both]
    of_type = _types(costs, [() if own else names for names, own in zip(types, alone, strict=True)], ratios, middles)
    found = []
    for cost, names, own, ratio, middle in zip(costs, types, alone, ratios, middles, strict=True):
        expected = middle + np.array([0.0 if own else of_type.get(name, 0.0) for name in names])
        weight = _LEFT**2 / (_LEFT**2 + cost.noise)
        whole = cost.diagonal * np.exp(expected + weight * (ratio - expected))
        found.append(np.where(cost.known, whole, 0.0) if cost.known.any() else cost.direct)
    return found


def _ratio(cost: Cost) -> np.ndarray:
    """float64 [errors], logarithms; 0 where a cost is 0."""
    return np.log(np.where(cost.known, cost.direct, 1.0)) - np.log(np.where(cost.known, cost.diagonal, 1.0))


def _types(
    costs: Sequence[Cost], types: Sequence[Sequence[str]], ratios: Sequence[np.ndarray], middles: Sequence[float]
) -> dict[str, float]:
    """What each type adds to the ratio of a matrix: a mean over matrices, nearer to zero the fewer they are.

    types: see `joined`; none of a matrix that has no part in it
    """
    seen: dict[str, list[tuple[float, float]]] = {}
    for cost, names, ratio, middle in zip(costs, types, ratios, middles, strict=True):
        for at in np.flatnonzero(cost.known).tolist() if names else ():
            seen.setdefault(names[at], []).append((float(ratio[at]) - middle, cost.noise))
    return {
        name: sum(value for value, _ in each) / (len(each) + sum(noise for _, noise in each) / len(each) / _OF_TYPE**2)
        for name, each in seen.items()
    }

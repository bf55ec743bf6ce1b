"""Choice of scales by trial: each block keeps the candidate with the least weighted error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from array_api_compat import array_namespace

from bitsmith.quant.formats.base import Params
from bitsmith.quant.grid import Array, Grid

_CHUNK = 1 << 20  # weights processed at once; limits the float64 temporaries


def usable(importance: Array | None) -> bool:
    """Whether an importance has an effect: None and all zeros do not."""
    if importance is None:
        return False
    xp = array_namespace(importance)
    return bool(xp.any(importance > 0))


def search(
    w: Array,
    importance: Array,
    candidates: Callable[[Array], Iterable[Params]],
    grid: Callable[[Params], Grid],
) -> Params:
    """For each block, the candidate with the least sum of importance * (value - weight)^2 after nearest rounding.

    w: float32 [rows, cols]
    importance: [cols] float32, >= 0
    candidates: yields complete parameters for some rows of `w`, each [rows, blocks], in stored precision
    grid: parameters -> their grid

    Errors are summed in float64. The earlier of two equal candidates stays, so if absmax is first, the result is never
    worse than absmax. Rows do not influence each other.
    """
    xp = array_namespace(w)
    step = max(1, _CHUNK // max(1, w.shape[1]))
    weight = xp.astype(importance, xp.float64)
    found = [
        _search_rows(w[start : start + step], weight, candidates, grid) for start in range(0, max(1, w.shape[0]), step)
    ]
    return {name: xp.concat([params[name] for params in found]) for name in found[0]}


def _in_order(error: Array) -> Array:
    """The sum over the last axis, from first to last on numpy arrays, as the C++ core takes it."""
    xp = array_namespace(error)
    turned = xp.permute_dims(error, (2, 0, 1))
    return xp.sum(np.ascontiguousarray(turned) if isinstance(turned, np.ndarray) else turned, axis=0)


def _search_rows(
    w: Array,
    weight: Array,
    candidates: Callable[[Array], Iterable[Params]],
    grid: Callable[[Params], Grid],
) -> Params:
    xp = array_namespace(w)
    exact = xp.astype(w, xp.float64)
    best: dict[str, Array] = {}
    least: Array = None
    for params in candidates(w):
        frozen = grid(params)
        with np.errstate(invalid="ignore"):  # a candidate that overflows float32 never wins
            error = (xp.astype(frozen.values(frozen.nearest(w)), xp.float64) - exact) ** 2 * weight
        blocks = frozen.scale.shape[1]
        error = _in_order(xp.reshape(error, (w.shape[0], blocks, w.shape[1] // blocks)))
        if least is None:
            best, least = dict(params), error
            continue
        better = error < least
        least = xp.where(better, error, least)
        best = {name: xp.where(better, params[name], kept) for name, kept in best.items()}
    return best

"""Scales chosen by trial in the C++ core: integers in groups, and tables with one scale a block.

The numpy code of `search`, `affine` and `codebook` is the definition, and `fitted` equals it to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from bitsmith.quant.formats.base import Format, Params
from bitsmith.quant.grid import Array
from bitsmith.system.core import core

if TYPE_CHECKING:
    from bitsmith.system._core import ScaleSearch


@dataclass(frozen=True)
class Ladder:
    """Settings of a search among shares of a block's extent.

    table: ascending levels
    ratios: shares of the extent that are tried, in order
    asymmetric: whether blocks have a zero point
    top: what the extent is divided by
    most: the largest scale; for asymmetric formats, the largest extent
    precision: of the scales: "f32", "f16" or "bf16"
    block: weights that share a scale; 0: a whole row
    signed: whether the scales of all shares but 1 are negative where the largest weight is positive
    """

    table: tuple[float, ...]
    ratios: tuple[float, ...]
    asymmetric: bool
    top: float
    most: float
    precision: str
    block: int
    signed: bool = False


@runtime_checkable
class Laddered(Format, Protocol):
    """A format whose scales are a share of the extent of their block."""

    @property
    def ladder(self) -> Ladder:
        """The settings of the search."""
        ...


def scale_search(format: Format, ratios: tuple[float, ...] = (), isa: str = "") -> ScaleSearch | None:
    """The core's search for a format; None if there is no core or it does not support the format.

    ratios: the shares to try; (): the format's own
    isa: the instruction set to use; "" is the best available one. What `fit` gives does not depend on it.
    """
    return _made(format.ladder, ratios or format.ladder.ratios, isa) if isinstance(format, Laddered) else None


@cache
def _made(ladder: Ladder, ratios: tuple[float, ...], isa: str) -> ScaleSearch | None:
    module = core()
    if module is None or not hasattr(module, "ScaleSearch"):  # an editable install may have an older one
        return None
    found: ScaleSearch = module.ScaleSearch(
        ladder.table,
        ratios=ratios,
        asymmetric=ladder.asymmetric,
        top=ladder.top,
        most=ladder.most,
        precision=ladder.precision,
        block=ladder.block,
        signed=ladder.signed,
        isa=isa,
    )
    return found


def fitted(format: Format, w: Array, importance: Array | None, *, threads: int = 1) -> Params | None:
    """`Format.fit`, by the core; None where it cannot. importance: float32 [cols], some of it above zero; or None"""
    search = scale_search(format) if _plain(w) else None
    if search is None:
        return None
    params = _empty(format, w)
    own = None if importance is None else np.ascontiguousarray(importance, np.float32)
    search.fit(np.ascontiguousarray(w), own, threads=threads, **_arguments(params))
    return params


def rounded(
    format: Format, w: np.ndarray, importance: np.ndarray | None, *, threads: int = 1
) -> tuple[np.ndarray, Params] | None:
    """The nearest codes, uint8 [rows, cols], and the parameters of `fitted`; None where the core cannot."""
    search = scale_search(format) if _plain(w) else None
    if search is None:
        return None
    params, codes = _empty(format, w), np.empty(w.shape, np.uint8)
    own = None if importance is None else np.ascontiguousarray(importance, np.float32)
    search.fit(np.ascontiguousarray(w), own, threads=threads, codes=codes, **_arguments(params))
    return codes, params


def rounded_values(
    format: Format, w: np.ndarray, importance: np.ndarray | None, *, threads: int = 1
) -> np.ndarray | None:
    """The values of the codes of `rounded`, float32 [rows, cols]."""
    search = scale_search(format) if _plain(w) else None
    if search is None:
        return None
    values = np.empty(w.shape, np.float32)
    own = None if importance is None else np.ascontiguousarray(importance, np.float32)
    search.fit(np.ascontiguousarray(w), own, threads=threads, values=values)
    return values


def clipped(
    format: Format, w: np.ndarray, gram: np.ndarray, ratios: tuple[float, ...], *, threads: int = 1
) -> Params | None:
    """Parameters whose blocks lose least of the outputs, tr(e G e^T) with the block's own part of G.

    gram: float32 [cols, cols]. Returns None where the core cannot.
    """
    search = scale_search(format, ratios) if _plain(w) else None
    if search is None:
        return None
    params = _empty(format, w)
    search.clip(np.ascontiguousarray(w), np.ascontiguousarray(gram), threads=threads, **_arguments(params))
    return params


def _plain(w: Array) -> bool:
    return isinstance(w, np.ndarray) and w.dtype == np.float32 and w.size > 0


def _empty(format: Format, w: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in format.params_layout(*w.shape).items()}


def _arguments(params: Params) -> dict[str, np.ndarray]:
    """The parameters as the core writes them: 16-bit scales as their bits."""
    return {name: p.view(np.uint16) if p.dtype.itemsize == 2 else p for name, p in params.items()}

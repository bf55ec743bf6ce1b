"""Scale searches of ggml's formats in the C++ core: the settings of a search, and the parameters it finds.

Results equal the numpy code in `bitsmith.quant.scale_search` bit for bit. The numpy code is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from bitsmith.quant.formats.base import Format, Params
from bitsmith.quant.grid import Array
from bitsmith.quant.scale_search import column_weights
from bitsmith.system.core import core

if TYPE_CHECKING:
    from bitsmith.system._core import Quantizer

_ARGUMENTS = {"d": "d", "m": "m", "dmin": "m", "scales": "scales", "mins": "mins", "e": "scales"}  # by parameter


@dataclass(frozen=True)
class Search:
    """Settings of a format's search. The core knows bits, blocks and tables from the ggml type.

    targets: levels tried for the largest weight of a block
    divisors: candidates for the largest scale of a super-block divided by its d
    reach: steps tried around the nearest integer scale; for scale bytes, the steps in the order of trial
    rounds: number of times scales are refined
    scales: the scale of each byte, ascending
    """

    type: str
    targets: tuple[float, ...] = ()
    divisors: tuple[float, ...] = ()
    reach: tuple[int, ...] = ()
    rounds: int = 0
    scales: tuple[float, ...] = ()


@runtime_checkable
class Searched(Format, Protocol):
    """A format whose scales the core can search."""

    @property
    def search(self) -> Search:
        """The settings of the search."""
        ...

    def fit_reference(self, w: Array, importance: Array | None = None) -> Params:
        """`fit` without the core. It defines the results, and handles torch tensors."""
        ...


def quantizer(format: Format, isa: str = "") -> Quantizer | None:
    """The core's search for a format; None if there is no core or it does not support the format.

    isa: the instruction set to use; "" is the best available one. Results do not depend on it.
    """
    return _quantizer(format.search, isa) if isinstance(format, Searched) else None


@cache
def _quantizer(search: Search, isa: str) -> Quantizer | None:
    module = core()
    if module is None:
        return None
    found: Quantizer = module.Quantizer(
        search.type,
        targets=search.targets,
        divisors=search.divisors,
        reach=search.reach,
        rounds=search.rounds,
        scales=search.scales,
        isa=isa,
    )
    return found


def fitted(format: Searched, w: Array, importance: Array | None) -> Params:
    """`Format.fit`, by the core if it is available and `w` is a numpy array of float32."""
    chosen = quantizer(format) if isinstance(w, np.ndarray) and w.dtype == np.float32 else None
    if chosen is None:
        return format.fit_reference(w, importance)
    layout = format.params_layout(*w.shape)
    params = {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}
    arguments = {_ARGUMENTS[name]: values for name, values in params.items()}
    chosen.fit(np.require(w, requirements=["C", "A"]), columns=column_weights(importance), **arguments)
    return params

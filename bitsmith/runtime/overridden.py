"""Weights as the user wants them when a model is loaded: rounded to a format while they are read, or other inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.containers.floats import FLOATS
from bitsmith.containers.native import LAYOUT_PREFIX, NativeCodec
from bitsmith.errors import TensorError, UnsupportedError
from bitsmith.quant.formats import resolve
from bitsmith.quant.formats.base import NeedsExtent
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.runtime.kernel import Weight

if TYPE_CHECKING:
    from bitsmith.models.overrides import Overrides
    from bitsmith.quant.formats.base import Format

_SLAB_WEIGHTS = 4 << 20  # weights read at a time to find a tensor's extent


def overridden(name: str, weight: Weight, overrides: Overrides) -> Weight:
    """The tensor `name`, a GGUF name, as `overrides` want it.

    Raises UnsupportedError for a matrix that is quantized already, or whose rows no block of the format divides.
    """
    if len(weight.info.shape) < 2 or not overrides.concern(name):
        return weight
    if overrides.inputs:
        weight = replace(weight, input_rounding=overrides.input_rounding)
    return rounded(name, weight, overrides.format) if overrides.format else weight


def rounded(name: str, weight: Weight, wanted: str) -> Weight:
    """A matrix of floats as the nearest codes of a format, rounded whenever rows are read."""
    if weight.info.layout not in FLOATS:
        raise UnsupportedError(
            f"{name} is already {weight.info.layout}, so it cannot be loaded as {wanted}; load the model as it is, or "
            "name the original."
        )
    try:
        format = of_whole(name, weight, resolve(wanted, weight.info.cols))
    except UnsupportedError as error:
        raise UnsupportedError(f"{name}: {error.message}.") from error

    def codes(start: int, stop: int) -> QuantTensor:
        found, params = nearest(_finite(name, weight.rows, start, stop), format)
        return QuantTensor(format, found, params)

    parts = NativeCodec(format).layout((weight.info.rows, weight.info.cols)).values()
    nbytes = sum(prod(shape) * dtype.itemsize for shape, dtype in parts)
    info = replace(weight.info, layout=f"{LAYOUT_PREFIX}{format.name}", nbytes=nbytes)
    return Weight(info, lambda start, stop: codes(start, stop).values(), weight.input_rounding, None, codes)


def of_whole(name: str, weight: Weight, format: Format) -> Format:
    """The format of a tensor; one with a scale for the whole tensor gets its extent."""
    if not isinstance(format, NeedsExtent):
        return format
    low, high = np.inf, -np.inf
    step = max(1, _SLAB_WEIGHTS // weight.info.cols)
    for start in range(0, weight.info.rows, step):
        w = _finite(name, weight.rows, start, min(start + step, weight.info.rows))
        low, high = min(low, float(w.min())), max(high, float(w.max()))
    return format.with_extent(low, high)


def _finite(name: str, rows: Callable[[int, int], np.ndarray], start: int, stop: int) -> np.ndarray:
    w = rows(start, stop)
    if not np.isfinite(w).all():
        raise TensorError(f"{name}: rows {start} to {stop} hold NaN or infinite weights; download the model again.")
    return w

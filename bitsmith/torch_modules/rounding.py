"""Nearest codes of torch's weights, in slabs of rows: on the CPU by the C++ core where it knows the format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import TensorError
from bitsmith.quant.formats.base import Format
from bitsmith.quant.formats.core_absmax import codebook_codes
from bitsmith.quant.formats.fourbit import FourBit
from bitsmith.quant.formats.precision import as_numpy
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor

_SLAB_WEIGHTS = 1 << 19  # weights rounded at a time by a thread: 2 MB of float32
_DEVICE_SLAB_WEIGHTS = 1 << 22  # the same on other devices: 16 MB
_ROWS = 16  # slabs are a multiple of it: whole panels
_STORED = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def rounded_slabs(
    w: Tensor, format: Format, name: str, packed: Callable[[QuantTensor], Any]
) -> Iterator[tuple[int, Any]]:
    """The rows of a matrix, float [rows, cols], in slabs: (first row, what `packed` makes of the slab's codes).

    packed: gets numpy arrays, and is called on several threads, as many as torch uses
    Raises TensorError, with `name`, where a weight is Inf or NaN.
    """
    on_cpu = w.device.type == "cpu"
    weights = _SLAB_WEIGHTS if on_cpu else _DEVICE_SLAB_WEIGHTS
    step = max(_ROWS, weights // max(w.shape[1], 1) // _ROWS * _ROWS)

    def made(start: int) -> tuple[int, Any]:
        return start, packed(_rounded(w[start : start + step], format, name))

    starts = range(0, w.shape[0], step)
    threads = min(torch.get_num_threads(), len(starts)) if on_cpu else 1
    if threads < 2:
        yield from map(made, starts)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(made, starts)


def check_finite(name: str, largest: float) -> None:
    """Raises TensorError, with `name`, for a largest magnitude that is Inf or NaN."""
    if not np.isfinite(largest):
        raise TensorError("has weights that are Inf or NaN; repair the model before quantizing it.", tensor=name)


def _check_params(params: Mapping[str, Any], format: Format, name: str) -> None:
    """Raises TensorError, with `name`, where a scale does not fit its stored type."""
    for key, value in params.items():
        kind = as_numpy(value).dtype
        if kind.name in ("float16", "float32", "bfloat16") and not np.isfinite(as_numpy(value)).all():
            raise TensorError(
                f"its weights are too large for {format.name}: a {key} does not fit {kind}. Scale the weights down, "
                "or choose a format with float32 scales, such as nf4.",
                tensor=name,
            )


def _rounded(w: Tensor, format: Format, name: str) -> QuantTensor:
    """The nearest codes and their parameters, as numpy arrays: what `nearest` gives."""
    if w.device.type != "cpu":
        slab = w.float().contiguous()
        check_finite(name, float(slab.abs().amax()) if slab.numel() else 0.0)
        codes, found_params = nearest(slab, format)
        stored = {key: as_numpy(value) for key, value in found_params.items()}
        _check_params(stored, format, name)
        return QuantTensor(format, as_numpy(codes), stored)
    if isinstance(format, FourBit) and w.dtype in _STORED:
        found = codebook_codes(format, w.contiguous().view(torch.uint8).numpy(), _STORED[w.dtype])
        if found is not None:
            check_finite(name, found.largest)
            return QuantTensor(format, found.out, {"scale": found.absmax})
    values = w.float().contiguous().numpy()
    check_finite(name, float(np.abs(values).max()) if values.size else 0.0)
    codes, params = nearest(values, format)
    _check_params(params, format, name)
    return QuantTensor(format, codes, params)


def as_tensor(value: np.ndarray) -> Tensor:
    """An array as a tensor, bfloat16 too."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(value).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(value))

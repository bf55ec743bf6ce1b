"""Stored precision of parameters, the same on numpy buffers and torch tensors."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from bitsmith.quant.grid import Array
from bitsmith.system.number_types import NumberTypes, number_type

FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
UINT8 = np.dtype(np.uint8)
PRECISIONS = NumberTypes({"f32": "float32", "f16": "float16", "bf16": "bfloat16"})


def stored(x: Array, dtype: np.dtype) -> Array:
    """`x`, float32, rounded to `dtype` (half to even), saturating at its largest finite value."""
    xp = array_namespace(x)
    if dtype == FLOAT32:
        return x
    largest = _largest(dtype)
    return xp.astype(xp.clip(x, -largest, largest), _dtype(xp, x, dtype))


@cache
def _largest(dtype: np.dtype) -> float:
    if dtype == FLOAT16:
        return float(np.finfo(np.float16).max)
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)


def to_float32(x: Array) -> Array:
    """Stored parameters as float32, exact."""
    xp = array_namespace(x)
    return xp.astype(x, xp.float32)


def constant(values: np.ndarray, like: Array) -> Array:
    """`values` in the array namespace and on the device of `like`; do not change them in place."""
    xp = array_namespace(like)
    if not is_torch_array(like):
        return values
    if like.device.type == "cuda":  # copied once: a copy from the host's memory waits for the device
        return _on_device(values.tobytes(), values.dtype, values.shape, str(like.device))
    return xp.asarray(values.copy(), device=like.device)


@lru_cache(maxsize=256)
def _on_device(data: bytes, dtype: np.dtype, shape: tuple[int, ...], device: str) -> Array:
    import torch

    return torch.tensor(np.frombuffer(data, dtype).reshape(shape), device=device)


def as_numpy(x: Array) -> np.ndarray:
    """The same array as a numpy array. torch's bfloat16 becomes ml_dtypes' bfloat16 with the same bits."""
    if not is_torch_array(x):
        return np.asarray(x)
    xp = array_namespace(x)
    x = x.detach().cpu()
    if x.dtype == xp.bfloat16:
        bits: np.ndarray = x.contiguous().view(xp.int16).numpy()
        return bits.view(number_type("bfloat16"))
    return np.asarray(x.numpy())


def _dtype(xp: Any, x: Array, dtype: np.dtype) -> Any:
    """The dtype of the namespace that matches a numpy dtype."""
    if not is_torch_array(x):
        return dtype
    return {"bfloat16": xp.bfloat16, "float16": xp.float16, "uint8": xp.uint8}[dtype.name]
